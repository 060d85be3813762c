//! What producers ask for: drawn from the seed, and remembered, so that a model can say what must come of it.

use std::collections::HashMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Tenants the documents belong to.
const TENANTS: [&str; 5] = ["acme", "birch", "corvid", "delta", "elm"];
/// Requests for one document, on average.
const PER_DOCUMENT: usize = 5;

/// A request, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Its id; tells its place in the workload.
    pub id: String,
    /// Its tenant.
    pub tenant: &'static str,
    /// Its document.
    pub document: String,
    /// What it asks for.
    pub wish: Wish,
    /// Its idempotency key.
    pub key: Option<String>,
    /// Metadata, one pair at most.
    pub metadata: Option<String>,
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// That the document has this text.
    Text(String),
    /// The same, with the text lying elsewhere under this name.
    Claim {
        /// Name in the store.
        name: String,
        /// What lies there.
        text: String,
        /// When.
        there: There,
    },
    /// That the document is deleted.
    Delete,
    /// Something that must be rejected.
    Impossible(Impossible),
}

/// When the store has what a request refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum There {
    /// Always.
    Always,
    /// The store fails for so long after the request was sent.
    After(Duration),
    /// The store fails until it is healed.
    FailingUntilHealed,
    /// There is nothing until the store is healed.
    MissingUntilHealed,
}

/// Why a request must be rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Impossible {
    /// It is locked with a password.
    Locked,
    /// It is a picture.
    Picture,
    /// It brings its content and says that it lies elsewhere.
    Both,
}

impl Impossible {
    /// The bytes that are sent.
    #[must_use]
    pub fn bytes(self) -> Vec<u8> {
        match self {
            // An OLE container with the stream that Office keeps a locked document in.
            Self::Locked => {
                let name: Vec<u8> = "EncryptedPackage".encode_utf16().flat_map(u16::to_le_bytes).collect();
                [&[0xd0, 0xcf, 0x11, 0xe0, 0xa1, 0xb1, 0x1a, 0xe1][..], &[0; 504], &name, &[0; 64]].concat()
            }
            Self::Picture => [b"\x89PNG\r\n\x1a\n".as_slice(), &[0; 40]].concat(),
            Self::Both => b"here and elsewhere".to_vec(),
        }
    }
}

impl Request {
    /// `tenant/document`.
    #[must_use]
    pub fn subject(&self) -> String {
        format!("{}/{}", self.tenant, self.document)
    }

    /// Everything that decides what the document becomes, when the request asks for a text.
    #[must_use]
    pub fn content(&self) -> Option<String> {
        let text = match &self.wish {
            Wish::Text(text) | Wish::Claim { text, .. } => text,
            Wish::Delete | Wish::Impossible(_) => return None,
        };
        Some(format!("{text}\n{}", self.metadata.as_deref().unwrap_or_default()))
    }

    /// Everything the request asks for; a repeat with the same key asks for the same.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let what = match &self.wish {
            Wish::Claim { name, .. } => format!("claim {name}"),
            other => format!("{other:?}"),
        };
        format!("{}\n{what}\n{}", self.document, self.metadata.as_deref().unwrap_or_default())
    }

    /// Whether it may be decided later than requests behind it: it needs a store, which may fail.
    #[must_use]
    pub fn may_wait(&self) -> bool {
        matches!(&self.wish, Wish::Claim { .. })
    }
}

/// What was asked for a document so far.
#[derive(Debug, Clone, Default)]
struct Asked {
    last: Option<Request>,
    keyed: Vec<Request>,
}

/// The requests of a seed, in the order in which they are sent.
#[must_use]
pub fn requests(seed: u64, count: usize) -> Vec<Request> {
    let mut random = StdRng::seed_from_u64(seed);
    let documents = (count / PER_DOCUMENT).max(1);
    let mut asked: HashMap<usize, Asked> = HashMap::new();
    let mut requests = Vec::with_capacity(count);
    for number in 0..count {
        // A third of the requests are for a tenth of the documents: those change quickly.
        let hot = random.random_bool(0.33);
        let place = random.random_range(0..if hot { (documents / 10).max(1) } else { documents });
        let asked = asked.entry(place).or_default();
        let request = draw(number, place, asked, &mut random);
        if matches!(request.wish, Wish::Text(_)) {
            if request.key.is_some() {
                asked.keyed.push(request.clone());
            }
            asked.last = Some(request.clone());
        } else {
            asked.last = None;
        }
        requests.push(request);
    }
    requests
}

fn draw(number: usize, place: usize, asked: &Asked, random: &mut StdRng) -> Request {
    let tenant = TENANTS.get(place % TENANTS.len()).copied().unwrap_or("acme");
    let id = format!("r-{number:07}");
    let fresh = |wish: Wish| Request {
        id: id.clone(),
        tenant,
        document: format!("doc-{place:06}"),
        wish,
        key: None,
        metadata: None,
    };
    let text = || format!("Gate {number} of weir {place} opens at dawn.");
    let again = |of: &Request| Request { id: id.clone(), ..of.clone() };
    let dice = random.random_range(0..1_000);
    let some_key = asked.keyed.get(random.random_range(0..asked.keyed.len().max(1)));
    match dice {
        0..520 => fresh(Wish::Text(text())),
        520..600 => Request { key: Some(format!("key-{number}")), ..fresh(Wish::Text(text())) },
        600..700 => match &asked.last {
            Some(last) => Request { key: None, ..again(last) },
            None => fresh(Wish::Text(text())),
        },
        700..740 => match &asked.last {
            Some(last) => Request { key: None, metadata: Some(format!("m-{number}")), ..again(last) },
            None => fresh(Wish::Text(text())),
        },
        740..790 => match some_key {
            Some(keyed) => again(keyed),
            None => fresh(Wish::Text(text())),
        },
        790..800 => match some_key {
            Some(keyed) => Request { wish: Wish::Text(text()), ..again(keyed) },
            None => fresh(Wish::Text(text())),
        },
        800..890 => fresh(Wish::Delete),
        890..905 => fresh(Wish::Impossible(Impossible::Picture)),
        905..910 => fresh(Wish::Impossible(Impossible::Locked)),
        910..915 => fresh(Wish::Impossible(Impossible::Both)),
        _ => {
            let there = match dice {
                915..965 => There::Always,
                965..990 => There::After(Duration::from_millis(random.random_range(300..4_000))),
                990..996 => There::FailingUntilHealed,
                _ => There::MissingUntilHealed,
            };
            fresh(Wish::Claim { name: format!("claim-{number}.txt"), text: text(), there })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_asks_for_the_same_each_time_and_for_everything_there_is() {
        let first = requests(7, 5_000);
        assert_eq!(first, requests(7, 5_000));
        assert_ne!(first, requests(8, 5_000));
        let count = |is: fn(&Request) -> bool| first.iter().filter(|request| is(request)).count();
        assert!(count(|request| request.wish == Wish::Delete) > 300);
        assert!(count(|request| matches!(request.wish, Wish::Impossible(_))) > 50);
        assert!(count(Request::may_wait) > 100);
        let mut keys = HashMap::new();
        for request in first.iter().filter(|request| request.key.is_some()) {
            *keys.entry((request.tenant, request.key.clone())).or_insert(0) += 1;
        }
        assert!(keys.values().filter(|count| **count > 1).count() > 50, "keys are used again");
    }
}
