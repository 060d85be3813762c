//! Tokenizer and sentence-embedding models on candle.
