//! Why a call of a model is not understood.

use super::form::FormError;
use crate::json::JsonError;

/// Why a call of a model is not understood. What is not understood must not be let through.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LlmError {
    /// A field of another type than the API has, which a lenient reader might take all the same.
    #[error("`{name}` is not {wanted}")]
    Field {
        /// The field.
        name: &'static str,
        /// What it should be.
        wanted: &'static str,
    },
    /// A multipart body that is not plain.
    #[error("the body is not a plain form: {0}")]
    Form(#[from] FormError),
    /// A body that is not plain JSON.
    #[error("the body is not plain JSON: {0}")]
    Json(#[from] JsonError),
    /// A key that some readers take for another.
    #[error("some readers take the key `{0}` for another")]
    KeyCase(String),
    /// Two fields that each bound the answer, and differ.
    #[error("`{one}` and `{other}` give two different bounds of the answer")]
    MaxTokens {
        /// One spelling.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
    /// Two places that each name the model, and differ.
    #[error("the call names two models, `{one}` and `{other}`")]
    Model {
        /// What the path or query says.
        one: String,
        /// What the body says.
        other: String,
    },
    /// A path that many APIs have, and a body that none of those known here has.
    #[error("the body is not that of the API that the path belongs to")]
    OtherShape,
    /// A path or query that names something in bytes that are no text.
    #[error("the path or query is not plain")]
    Path,
    /// One field in two spellings.
    #[error("`{0}` is there in two spellings")]
    Twice(&'static str),
}

impl LlmError {
    /// A stable code such as `llm_model_contradiction`, or that of the JSON problem.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Field { .. } => "llm_field",
            Self::Form(error) => error.code(),
            Self::Json(error) => error.code(),
            Self::KeyCase(_) => "llm_key_case",
            Self::MaxTokens { .. } => "llm_max_tokens_contradiction",
            Self::Model { .. } => "llm_model_contradiction",
            Self::OtherShape => "llm_other_shape",
            Self::Path => "llm_path",
            Self::Twice(_) => "llm_field_twice",
        }
    }
}
