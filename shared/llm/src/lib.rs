//! OpenAI-compatible providers.
