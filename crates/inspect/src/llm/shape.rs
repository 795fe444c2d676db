//! The shapes of calls: which API, and which of its operations.

/// A call's shape. Whose host speaks it does not matter: many speak another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shape {
    /// Anthropic, `POST /v1/messages/batches`.
    AnthropicBatch,
    /// Anthropic, `POST /v1/complete`.
    AnthropicComplete,
    /// Anthropic, `POST /v1/messages/count_tokens`.
    AnthropicCount,
    /// Anthropic, `POST /v1/messages`; also `:rawPredict` and `:streamRawPredict` of its models at Vertex.
    AnthropicMessages,
    /// Anthropic, batches that are there: list, read, cancel, delete.
    AnthropicStored,
    /// Bedrock, `POST /model/{id}/converse`.
    BedrockConverse,
    /// Bedrock, `POST /model/{id}/converse-stream`.
    BedrockConverseStream,
    /// Bedrock, `POST /model/{id}/count-tokens`.
    BedrockCount,
    /// Bedrock, `POST /model/{id}/invoke`.
    BedrockInvoke,
    /// Bedrock, `POST /model/{id}/invoke-with-response-stream`.
    BedrockInvokeStream,
    /// Google, `:batchEmbedContents`.
    GoogleBatchEmbed,
    /// Google, `:countTokens` and `:computeTokens`.
    GoogleCount,
    /// Google, `:embedContent`.
    GoogleEmbed,
    /// Google, `:generateContent`.
    GoogleGenerate,
    /// Google, `POST /v1beta/interactions`.
    GoogleInteraction,
    /// Google, the WebSocket of `BidiGenerateContent`.
    GoogleLive,
    /// Google, `GET /v1beta/models` and one of them.
    GoogleModels,
    /// Vertex, `:predict`, `:predictLongRunning`, and the raw forms for models whose API is not known here.
    GooglePredict,
    /// Google, what is kept there: files, cached contents, interactions, agents.
    GoogleStored,
    /// Google, `:streamGenerateContent`.
    GoogleStreamGenerate,
    /// llama.cpp, `POST /completion` and `POST /infill`.
    LlamaCompletion,
    /// llama.cpp, `POST /embedding`.
    LlamaEmbed,
    /// Ollama, `POST /api/chat`.
    OllamaChat,
    /// Ollama, `POST /api/embed` and `POST /api/embeddings`.
    OllamaEmbed,
    /// Ollama, `POST /api/generate`.
    OllamaGenerate,
    /// Ollama, what changes its models: `pull`, `push`, `create`, `copy`, `delete`, `blobs`.
    OllamaManage,
    /// Ollama, `tags`, `ps`, `show`, `version`.
    OllamaModels,
    /// OpenAI, `POST /v1/batches`; what it runs is in a file.
    OpenAiBatch,
    /// OpenAI, `POST /v1/chat/completions`.
    OpenAiChat,
    /// OpenAI, `POST /v1/completions`.
    OpenAiCompletion,
    /// OpenAI, `POST /v1/responses/input_tokens`.
    OpenAiCount,
    /// OpenAI, `POST /v1/embeddings`.
    OpenAiEmbed,
    /// OpenAI, `/v1/files` and `/v1/uploads`, whatever is done there.
    OpenAiFiles,
    /// OpenAI, `POST /v1/images/…`.
    OpenAiImage,
    /// OpenAI, `POST /v1/realtime/client_secrets` and its like: what comes back is a credential.
    OpenAiMint,
    /// OpenAI, `GET /v1/models` and one of them.
    OpenAiModels,
    /// OpenAI, `POST /v1/moderations`.
    OpenAiModerate,
    /// OpenAI, the WebSocket of `/v1/realtime`.
    OpenAiRealtime,
    /// OpenAI, `POST /v1/responses` and `POST /v1/responses/compact`.
    OpenAiResponses,
    /// OpenAI, the WebSocket of `/v1/responses`.
    OpenAiSocket,
    /// OpenAI, `POST /v1/audio/speech`.
    OpenAiSpeech,
    /// OpenAI, what is kept there: stored completions, responses, conversations, batches.
    OpenAiStored,
    /// OpenAI, `POST /v1/audio/transcriptions` and `POST /v1/audio/translations`.
    OpenAiTranscribe,
}

/// Whose form a call has, and so an error that answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Api {
    /// Anthropic's Messages API.
    Anthropic,
    /// Amazon Bedrock Runtime.
    Bedrock,
    /// Gemini API and Vertex AI.
    Google,
    /// llama.cpp's own API.
    Llama,
    /// Ollama's own API.
    Ollama,
    /// OpenAI's API, which Azure, vLLM and many others speak too.
    OpenAi,
}

/// What a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Work {
    /// A model writes text.
    Complete,
    /// Tokens are counted; no model runs.
    Count,
    /// Text becomes vectors.
    Embed,
    /// Something is read about models.
    List,
    /// Models themselves are changed.
    Manage,
    /// Images or sound are made or understood.
    Media,
    /// A credential is made, with which somebody can call past the gate.
    Mint,
    /// Text is judged.
    Moderate,
    /// Something that the provider keeps is read, written or removed.
    Store,
}

impl Shape {
    /// A stable word, such as `openai.chat`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        self.row().0
    }

    /// Whose form it has.
    #[must_use]
    pub const fn api(self) -> Api {
        self.row().1
    }

    /// What it is for.
    #[must_use]
    pub const fn work(self) -> Work {
        self.row().2
    }

    const fn row(self) -> (&'static str, Api, Work) {
        match self {
            Self::AnthropicBatch => ("anthropic.batch", Api::Anthropic, Work::Complete),
            Self::AnthropicComplete => ("anthropic.complete", Api::Anthropic, Work::Complete),
            Self::AnthropicCount => ("anthropic.count", Api::Anthropic, Work::Count),
            Self::AnthropicMessages => ("anthropic.messages", Api::Anthropic, Work::Complete),
            Self::AnthropicStored => ("anthropic.stored", Api::Anthropic, Work::Store),
            Self::BedrockConverse => ("bedrock.converse", Api::Bedrock, Work::Complete),
            Self::BedrockConverseStream => ("bedrock.converse_stream", Api::Bedrock, Work::Complete),
            Self::BedrockCount => ("bedrock.count", Api::Bedrock, Work::Count),
            Self::BedrockInvoke => ("bedrock.invoke", Api::Bedrock, Work::Complete),
            Self::BedrockInvokeStream => ("bedrock.invoke_stream", Api::Bedrock, Work::Complete),
            Self::GoogleBatchEmbed => ("google.batch_embed", Api::Google, Work::Embed),
            Self::GoogleCount => ("google.count", Api::Google, Work::Count),
            Self::GoogleEmbed => ("google.embed", Api::Google, Work::Embed),
            Self::GoogleGenerate => ("google.generate", Api::Google, Work::Complete),
            Self::GoogleInteraction => ("google.interaction", Api::Google, Work::Complete),
            Self::GoogleLive => ("google.live", Api::Google, Work::Complete),
            Self::GoogleModels => ("google.models", Api::Google, Work::List),
            Self::GooglePredict => ("google.predict", Api::Google, Work::Complete),
            Self::GoogleStored => ("google.stored", Api::Google, Work::Store),
            Self::GoogleStreamGenerate => ("google.stream_generate", Api::Google, Work::Complete),
            Self::LlamaCompletion => ("llama.completion", Api::Llama, Work::Complete),
            Self::LlamaEmbed => ("llama.embed", Api::Llama, Work::Embed),
            Self::OllamaChat => ("ollama.chat", Api::Ollama, Work::Complete),
            Self::OllamaEmbed => ("ollama.embed", Api::Ollama, Work::Embed),
            Self::OllamaGenerate => ("ollama.generate", Api::Ollama, Work::Complete),
            Self::OllamaManage => ("ollama.manage", Api::Ollama, Work::Manage),
            Self::OllamaModels => ("ollama.models", Api::Ollama, Work::List),
            Self::OpenAiBatch => ("openai.batch", Api::OpenAi, Work::Complete),
            Self::OpenAiChat => ("openai.chat", Api::OpenAi, Work::Complete),
            Self::OpenAiCompletion => ("openai.completion", Api::OpenAi, Work::Complete),
            Self::OpenAiCount => ("openai.count", Api::OpenAi, Work::Count),
            Self::OpenAiEmbed => ("openai.embed", Api::OpenAi, Work::Embed),
            Self::OpenAiFiles => ("openai.files", Api::OpenAi, Work::Store),
            Self::OpenAiImage => ("openai.image", Api::OpenAi, Work::Media),
            Self::OpenAiMint => ("openai.mint", Api::OpenAi, Work::Mint),
            Self::OpenAiModels => ("openai.models", Api::OpenAi, Work::List),
            Self::OpenAiModerate => ("openai.moderate", Api::OpenAi, Work::Moderate),
            Self::OpenAiRealtime => ("openai.realtime", Api::OpenAi, Work::Complete),
            Self::OpenAiResponses => ("openai.responses", Api::OpenAi, Work::Complete),
            Self::OpenAiSocket => ("openai.socket", Api::OpenAi, Work::Complete),
            Self::OpenAiSpeech => ("openai.speech", Api::OpenAi, Work::Media),
            Self::OpenAiStored => ("openai.stored", Api::OpenAi, Work::Store),
            Self::OpenAiTranscribe => ("openai.transcribe", Api::OpenAi, Work::Media),
        }
    }

    /// Whether the agent says what it wants in messages of a WebSocket.
    #[must_use]
    pub const fn is_websocket(self) -> bool {
        matches!(self, Self::GoogleLive | Self::OpenAiRealtime | Self::OpenAiSocket)
    }

    /// Whether a model runs, so that a call must name it.
    #[must_use]
    pub const fn runs_model(self) -> bool {
        matches!(self.work(), Work::Complete | Work::Embed | Work::Media | Work::Moderate)
    }
}
