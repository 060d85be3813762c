//! One version of a prompt: its templates, its settings, and what must hold for them.

use std::num::NonZeroU32;

use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value, context};
use serde::Deserialize;
use weir_contracts::length_prefixed_hash;

use super::PromptError;

/// The templates of a version; each becomes a message.
const BLOCKS: [&str; 2] = [SYSTEM, USER];
const SYSTEM: &str = "system";
const USER: &str = "user";

/// What a version sets itself; where it sets nothing, the service's settings hold.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PromptSettings {
    /// Tokens of an answer, at most.
    pub max_output_tokens: Option<NonZeroU32>,
    /// Temperature of the model, 0 to 2.
    pub temperature: Option<f32>,
}

/// A version that can be rendered.
#[derive(Debug)]
pub(super) struct Version {
    name: String,
    file: String,
    /// Its own, so that no version can include another.
    environment: Environment<'static>,
    settings: PromptSettings,
    fingerprint: String,
    tests: Vec<Test>,
}

/// A passage as a template sees it, before its text is made safe.
#[derive(Debug, Clone, Copy)]
pub(super) struct Material<'a> {
    /// Title of the document.
    pub(super) title: Option<&'a str>,
    /// Headings above the passage, outermost first.
    pub(super) headings: &'a [String],
    /// The passage.
    pub(super) text: &'a str,
}

/// The texts of the messages.
pub(super) struct Rendered {
    pub(super) system: String,
    pub(super) user: String,
}

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    description: String,
    system: String,
    user: String,
    max_output_tokens: Option<NonZeroU32>,
    temperature: Option<f32>,
    #[serde(default)]
    tests: Vec<Test>,
}

/// What the messages must say for a question and its passages.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Test {
    name: String,
    question: String,
    #[serde(default)]
    passages: Vec<TestPassage>,
    #[serde(default)]
    system_contains: Vec<String>,
    #[serde(default)]
    user_contains: Vec<String>,
    #[serde(default)]
    user_lacks: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TestPassage {
    title: Option<String>,
    #[serde(default)]
    headings: Vec<String>,
    text: String,
}

impl Version {
    /// Reads a file; `file` is what errors call it.
    ///
    /// # Errors
    /// When it is not a version of a prompt, or a block is not a template.
    pub(super) fn parse(name: &str, file: &str, text: &str) -> Result<Self, PromptError> {
        let fail = |reason| PromptError::File { file: file.to_owned(), reason };
        let source: Source = toml::from_str(text).map_err(|error| fail(at_its_line(&error, text)))?;
        source.validate().map_err(fail)?;
        let mut version = Self {
            name: name.to_owned(),
            file: file.to_owned(),
            environment: environment(),
            settings: source.settings(),
            fingerprint: source.fingerprint(),
            tests: source.tests,
        };
        for (block, template) in BLOCKS.into_iter().zip([source.system, source.user]) {
            let added = version.environment.add_template_owned(block, template);
            added.map_err(|error| version.unusable(block, &error))?;
        }
        Ok(version)
    }

    pub(super) fn settings(&self) -> PromptSettings {
        self.settings
    }

    pub(super) fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    /// The messages for a question and its passages, which are numbered from 1.
    ///
    /// # Errors
    /// When a template can't be rendered.
    pub(super) fn render<'a>(
        &self,
        question: &str,
        passages: impl Iterator<Item = Material<'a>>,
    ) -> Result<Rendered, PromptError> {
        let passages: Vec<Value> = passages.zip(1_usize..).map(|(passage, number)| passage.numbered(number)).collect();
        let context = context! { question => contained(question), passages => passages };
        let block = |name| {
            let rendered = self.environment.get_template(name).and_then(|template| template.render(&context));
            rendered.map(|text| text.trim().to_owned()).map_err(|error| self.unusable(name, &error))
        };
        Ok(Rendered { system: block(SYSTEM)?, user: block(USER)? })
    }

    /// Renders it with nothing and with everything there can be, then holds it to what it says must hold.
    ///
    /// # Errors
    /// When it can't be rendered or a test fails.
    pub(super) fn test(&self) -> Result<(), PromptError> {
        let headings = ["?".to_owned()];
        let full = Material { title: Some("?"), headings: &headings, text: "?" };
        let bare = Material { title: None, headings: &[], text: "" };
        self.render("?", std::iter::empty())?;
        self.render("?", [full, bare].into_iter())?;
        for test in &self.tests {
            let rendered = self.render(&test.question, test.passages.iter().map(TestPassage::material))?;
            if let Some(reason) = test.broken_by(&rendered) {
                let (version, file, test) = (self.name.clone(), self.file.clone(), test.name.clone());
                return Err(PromptError::Test { version, file, test, reason });
            }
        }
        Ok(())
    }

    fn unusable(&self, block: &'static str, error: &minijinja::Error) -> PromptError {
        let (version, file, reason) = (self.name.clone(), self.file.clone(), error.to_string());
        PromptError::Template { version, file, block, reason }
    }
}

impl Source {
    fn settings(&self) -> PromptSettings {
        PromptSettings { max_output_tokens: self.max_output_tokens, temperature: self.temperature }
    }

    /// Of what decides the answer: a description or a test may change at any time.
    fn fingerprint(&self) -> String {
        let tokens = self.max_output_tokens.map(|tokens| tokens.to_string()).unwrap_or_default();
        let temperature = self.temperature.map(|temperature| temperature.to_string()).unwrap_or_default();
        let parts = [self.system.as_str(), &self.user, &tokens, &temperature].map(str::as_bytes);
        hex::encode(length_prefixed_hash(&parts))
    }

    fn validate(&self) -> Result<(), String> {
        if self.description.trim().is_empty() {
            return Err("description: say what changed against the last version, and why".into());
        }
        if self.temperature.is_some_and(|temperature| !(0.0..=2.0).contains(&temperature)) {
            return Err("temperature: must lie between 0 and 2".into());
        }
        self.tests.iter().try_for_each(Test::validate)
    }
}

impl Test {
    /// A test that can't fail is a slip.
    fn validate(&self) -> Result<(), String> {
        let mut wanted = self.system_contains.iter().chain(&self.user_contains).peekable();
        if wanted.peek().is_none() && self.user_lacks.is_empty() {
            return Err(format!("test {:?} expects nothing", self.name));
        }
        if wanted.any(String::is_empty) {
            return Err(format!("test {:?} expects an empty text, which is always there", self.name));
        }
        Ok(())
    }

    /// The first expectation that does not hold.
    fn broken_by(&self, rendered: &Rendered) -> Option<String> {
        let (system, user) = (&rendered.system, &rendered.user);
        let missing = |texts: &[String], message: &str| texts.iter().find(|text| !message.contains(*text)).cloned();
        if let Some(text) = missing(&self.system_contains, system) {
            return Some(format!("the system message must contain {text:?}, but is {system:?}"));
        }
        if let Some(text) = missing(&self.user_contains, user) {
            return Some(format!("the user message must contain {text:?}, but is {user:?}"));
        }
        let text = self.user_lacks.iter().find(|text| user.contains(*text))?;
        Some(format!("the user message must not contain {text:?}, but is {user:?}"))
    }
}

impl TestPassage {
    fn material(&self) -> Material<'_> {
        Material { title: self.title.as_deref(), headings: &self.headings, text: &self.text }
    }
}

impl Material<'_> {
    fn numbered(&self, number: usize) -> Value {
        context! {
            number => number,
            title => self.title.map(attribute),
            headings => attribute(&self.headings.join(" > ")),
            text => contained(self.text),
        }
    }
}

/// Text of a document, which cannot end its own passage or begin another.
pub(super) fn contained(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('<') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let name = from.trim_start_matches(['<', '/', ' ']);
        let tag = name.get(..7).is_some_and(|name| name.eq_ignore_ascii_case("passage"));
        out.push_str(if tag { "‹" } else { "<" });
        rest = from.get(1..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

/// The same as the value of an attribute.
pub(super) fn attribute(text: &str) -> String {
    contained(text).replace('"', "'").replace(['\n', '\r'], " ")
}

/// Messages are plain text, and a variable that does not exist is a slip.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment
}

/// What is wrong with a file, in one line.
fn at_its_line(error: &toml::de::Error, text: &str) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.map(|before| format!("line {}: ", before.matches('\n').count() + 1)).unwrap_or_default();
    format!("{line}{}", error.message())
}
