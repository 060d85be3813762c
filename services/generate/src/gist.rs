//! What a question asks, apart from how it is put. Two questions of one gist may share an answer; whether they do is for their
//! vectors to say. Vectors alone can't: "with" and "without", 2019 and 2020, or two people's names lie as near to each other
//! as two ways to ask the same.
//!
//! Only what is known to make no difference is let go: forms of politeness, articles, and words that a small table has for the
//! same. Every other word, so every negation, number and name, must be there in both, in the same order. In another language
//! than English that means the same words.

use std::collections::BTreeSet;

use unicode_normalization::UnicodeNormalization;
use unicode_segmentation::UnicodeSegmentation;

/// Words that may stand before a question or after it.
const POLITENESS: [&[&str]; 16] = [
    &["can", "you", "please", "tell", "me"],
    &["could", "you", "please", "tell", "me"],
    &["can", "you", "tell", "me"],
    &["could", "you", "tell", "me"],
    &["i", "would", "like", "to", "know"],
    &["i", "want", "to", "know"],
    &["do", "you", "know"],
    &["please", "tell", "me"],
    &["thank", "you"],
    &["tell", "me"],
    &["please"],
    &["thanks"],
    &["hello"],
    &["hey"],
    &["hi"],
    &["dear"],
];

/// Ways to ask how something is done.
const HOW: [&[&str]; 10] = [
    &["how", "do", "i"],
    &["how", "do", "we"],
    &["how", "can", "i"],
    &["how", "can", "we"],
    &["how", "could", "i"],
    &["how", "would", "i"],
    &["how", "does", "one"],
    &["how", "can", "one"],
    &["how", "to"],
    &["how", "i"],
];

/// What asks for a price; a table word by itself.
const HOW_MUCH: [&str; 2] = ["how", "much"];

/// Words without a share in what is asked.
const FORM: [&str; 16] =
    ["a", "am", "an", "are", "be", "do", "does", "exactly", "is", "just", "my", "of", "our", "the", "what", "which"];

/// Words for the same, those of a line; the first stands for all. No word is in two lines, and of a line at most one can be
/// somebody's name.
const SAME: [&[&str]; 24] = [
    &["cost", "costs", "price", "prices"],
    &["create", "creates", "creating"],
    &["remove", "removes", "removing", "delete", "deletes", "deleting", "erase"],
    &["alter", "alters", "modify", "modifies", "modifying"],
    &["repair", "repairs", "repairing", "fix", "fixes", "fixing"],
    &["buy", "buys", "purchase", "purchases"],
    &["obtain", "obtains", "get", "gets", "getting"],
    &["permitted", "allowed"],
    &["require", "requires", "need", "needs"],
    &["use", "uses", "using", "utilize"],
    &["aid", "assist", "help", "helps"],
    &["big", "large"],
    &["quickly", "fast"],
    &["method", "methods", "procedure", "way", "ways"],
    &["built", "constructed"],
    &["children", "kids"],
    &["was", "were", "did"],
    &["will", "shall"],
    &["has", "have"],
    &["site", "website"],
    &["photo", "photos", "photograph", "picture", "pictures"],
    &["film", "movie"],
    &["begun", "started"],
    &["purpose", "aim"],
];

/// What a question asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gist {
    /// Words of the table, each by the first of its line.
    known: BTreeSet<&'static str>,
    /// All others, in order.
    others: Vec<String>,
}

impl Gist {
    pub(crate) fn of(question: &str) -> Self {
        let words = words(question);
        let (mut known, mut others) = (BTreeSet::new(), Vec::new());
        let mut rest = polite(&words);
        while let Some((word, after)) = rest.split_first() {
            if begins_with(rest, &HOW_MUCH) {
                known.insert("cost");
                rest = rest.get(HOW_MUCH.len()..).unwrap_or_default();
                continue;
            }
            if let Some(how) = HOW.into_iter().find(|how| begins_with(rest, how)) {
                others.push("how".to_owned());
                rest = rest.get(how.len()..).unwrap_or_default();
                continue;
            }
            rest = after;
            let same =
                || SAME.into_iter().find(|same| same.contains(&word.text.as_str())).and_then(|same| same.first());
            if word.may_be_name {
                others.push(word.text.clone());
            } else if let Some(first) = same() {
                known.insert(*first);
            } else if !FORM.contains(&word.text.as_str()) {
                others.push(word.text.clone());
            }
        }
        Self { known, others }
    }
}

#[derive(Debug)]
struct Word {
    text: String,
    /// Written with a capital, and not the first.
    may_be_name: bool,
}

fn begins_with(words: &[Word], beginning: &[&str]) -> bool {
    words.len() >= beginning.len() && words.iter().zip(beginning).all(|(word, text)| word.text == *text)
}

/// The words without what politeness puts around them.
fn polite(mut words: &[Word]) -> &[Word] {
    while let Some(said) = POLITENESS.into_iter().find(|said| said.len() < words.len() && begins_with(words, said)) {
        words = words.get(said.len()..).unwrap_or_default();
    }
    loop {
        let ends_with = |said: &&[&str]| {
            let at = words.len().checked_sub(said.len()).filter(|at| *at > 0);
            at.and_then(|at| words.get(at..)).is_some_and(|end| begins_with(end, said))
        };
        let Some(said) = POLITENESS.into_iter().find(ends_with) else { return words };
        words = words.get(..words.len() - said.len()).unwrap_or_default();
    }
}

/// The words, lower case, contractions in full.
fn words(question: &str) -> Vec<Word> {
    let normal: String = question.nfkc().collect::<String>().replace('’', "'");
    let mut words = Vec::new();
    for (at, word) in normal.unicode_words().enumerate() {
        let may_be_name = at > 0 && word.chars().next().is_some_and(char::is_uppercase);
        let lower = word.to_lowercase();
        let mut push = |text: &str, may_be_name| words.push(Word { text: text.to_owned(), may_be_name });
        if lower == "cannot" || lower == "can't" {
            push("can", false);
            push("not", false);
        } else if lower == "won't" {
            push("will", false);
            push("not", false);
        } else if let Some(base) = lower.strip_suffix("n't") {
            push(base, may_be_name);
            push("not", false);
        } else if let Some((base, ending)) = lower.rsplit_once('\'') {
            push(base, may_be_name);
            match ending {
                // Is, has, or somebody's: none makes a difference here.
                "s" | "re" | "m" | "" => {}
                "ll" => push("will", false),
                "d" => push("would", false),
                "ve" => push("have", false),
                other => push(other, true),
            }
        } else {
            push(&lower, may_be_name);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn alike(a: &str, b: &str) -> bool {
        Gist::of(a) == Gist::of(b)
    }

    #[test]
    fn ways_to_ask_the_same_have_one_gist() {
        for (a, b) in [
            ("How do I reset my password?", "how can I reset the password"),
            ("How to reset a password?", "Please tell me how I reset my password, thanks"),
            ("What's the price of the Premium plan?", "How much does the Premium plan cost?"),
            ("Who built the mill at Ulm?", "Can you tell me who built the mill at Ulm?"),
            ("Which pictures are needed", "which photos are needed?"),
            ("How can I delete a document?", "How do I remove a document?"),
            ("What is not allowed?", "What isn't permitted?"),
            ("When was the mill constructed?", "when was the mill built"),
        ] {
            assert_eq!(Gist::of(a), Gist::of(b));
        }
    }

    #[test]
    fn what_makes_a_difference_is_kept() {
        for (a, b) in [
            ("What is allowed with a licence?", "What is allowed without a licence?"),
            ("Which plans include support?", "Which plans do not include support?"),
            ("Can I cancel?", "Can't I cancel?"),
            ("What did revenue reach in 2019?", "What did revenue reach in 2020?"),
            ("How many seats has plan 5?", "How many seats has plan five?"),
            ("Who is Jane Smith?", "Who is John Smith?"),
            ("who is jane smith", "who is john smith"),
            ("Did France beat Germany?", "Did Germany beat France?"),
            ("did france beat germany", "did germany beat france"),
            ("How do I contact you?", "How do you contact me?"),
            ("What is the price of Will?", "What will the price be?"),
            ("Where is the university?", "Where is the universe?"),
            ("When does it start?", "When did it start?"),
            ("Who is William?", "Who is Williams?"),
            ("Is it before the deadline?", "Is it after the deadline?"),
            ("¿Qué está permitido con licencia?", "¿Qué está permitido sin licencia?"),
            ("Was ist erlaubt?", "Was ist nicht erlaubt?"),
        ] {
            assert!(!alike(a, b), "{a} {b}: {:?}", Gist::of(a));
        }
    }

    #[test]
    fn the_table_says_of_each_word_one_thing() {
        let all: Vec<&str> = SAME.concat().into_iter().chain(FORM).collect();
        let distinct: BTreeSet<&str> = all.iter().copied().collect();
        assert_eq!(all.len(), distinct.len());
    }

    const QUESTIONS: [&str; 6] = [
        "how do i reset my password",
        "What does the Premium plan cost in Norway?",
        "Who built the mill at Ulm and when was it repaired?",
        "which documents need a signature",
        "Is the gateway allowed to shed load?",
        "Why was the report delayed?",
    ];

    proptest! {
        #[test]
        fn a_negation_a_number_or_a_name_more_or_another_is_another_question(
            question in prop::sample::select(&QUESTIONS[..]),
            place in 0usize..20,
            word in prop_oneof![
                prop::sample::select(&["not", "never", "no", "without", "nobody", "nor", "cannot", "isn't"][..]).prop_map(str::to_owned),
                "[1-9][0-9]{0,5}",
                "[A-Z][bcdfghjklmnpqrstvwxz][aeiou][a-z]{3,8}",
            ],
            other in prop_oneof!["[1-9][0-9]{0,5}", "[A-Z][bcdfghjklmnpqrstvwxz][aeiou][a-z]{3,8}"],
        ) {
            prop_assume!(word.to_lowercase() != other.to_lowercase());
            let words: Vec<&str> = question.split(' ').collect();
            let (before, after) = words.split_at(1 + place % (words.len() - 1));
            let with = |word: &str| [before, &[word], after].concat().join(" ");
            prop_assert!(!alike(question, &with(&word)));
            prop_assert!(!alike(&with(&word), &with(&other)));
            prop_assert!(!alike(&with(&word).to_lowercase(), &with(&other).to_lowercase()));
        }
    }
}
