//! The messages that a Streamlit page and its server exchange, as far as opening a page and asking it needs them.
//!
//! Fields that are not here are skipped when read. Names and numbers are Streamlit's own.
//!
//! # Source
//! `streamlit/proto/*.proto`, compared with those of Streamlit 1.67.

/// What the browser sends.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BackMsg {
    /// Runs the script.
    #[prost(message, optional, tag = "11")]
    pub rerun_script: Option<ClientState>,
}

/// What the browser knows.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ClientState {
    /// Query of the page's URL.
    #[prost(string, tag = "1")]
    pub query_string: String,
    /// Values of the widgets.
    #[prost(message, optional, tag = "2")]
    pub widget_states: Option<WidgetStates>,
    /// Which page of the application; empty: the first.
    #[prost(string, tag = "3")]
    pub page_script_hash: String,
}

/// Values of the widgets.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WidgetStates {
    /// One for each widget.
    #[prost(message, repeated, tag = "1")]
    pub widgets: Vec<WidgetState>,
}

/// Value of one widget.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WidgetState {
    /// Which.
    #[prost(string, tag = "1")]
    pub id: String,
    /// What was typed into a chat input.
    #[prost(message, optional, tag = "15")]
    pub chat_input_value: Option<ChatInputValue>,
}

/// What was typed into a chat input.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ChatInputValue {
    /// The text.
    #[prost(string, optional, tag = "1")]
    pub data: Option<String>,
}

/// What the server sends.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ForwardMsg {
    /// Its name by content.
    #[prost(string, tag = "1")]
    pub hash: String,
    /// Where it belongs.
    #[prost(message, optional, tag = "2")]
    pub metadata: Option<ForwardMsgMetadata>,
    /// What it says; `None` for what is not known here.
    #[prost(oneof = "forward_msg::Type", tags = "4, 5, 6, 9, 10, 11, 13")]
    pub r#type: Option<forward_msg::Type>,
}

/// What a [`ForwardMsg`] says.
pub mod forward_msg {
    /// What it says.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Type {
        /// A run of the script begins; what it draws replaces what was drawn.
        #[prost(message, tag = "4")]
        NewSession(super::NewSession),
        /// Something is drawn.
        #[prost(message, tag = "5")]
        Delta(super::Delta),
        /// A run ended.
        #[prost(enumeration = "super::ScriptFinishedStatus", tag = "6")]
        ScriptFinished(i32),
        /// Whether a run is under way.
        #[prost(message, tag = "9")]
        SessionStatusChanged(super::SessionStatus),
        /// Something happened to the session.
        #[prost(message, tag = "10")]
        SessionEvent(super::SessionEvent),
        /// The message with this hash, which the browser has.
        #[prost(string, tag = "11")]
        RefHash(String),
        /// Title and layout.
        #[prost(message, tag = "13")]
        PageConfigChanged(super::PageConfig),
    }
}

/// Where a message belongs.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ForwardMsgMetadata {
    /// Whether the browser should keep it, to be referred to by its hash.
    #[prost(bool, tag = "1")]
    pub cacheable: bool,
    /// Place in the page: 0 main, 1 sidebar, 2 event, 3 bottom, and from there down.
    #[prost(uint32, repeated, tag = "2")]
    pub delta_path: Vec<u32>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
#[allow(clippy::enum_variant_names, reason = "the names are Streamlit's own")]
pub enum ScriptFinishedStatus {
    /// To its end, which an exception that the page shows can be.
    FinishedSuccessfully = 0,
    /// It does not compile.
    FinishedWithCompileError = 1,
    /// It was cut short, and another run follows.
    FinishedEarlyForRerun = 2,
    /// A fragment of it ran to its end.
    FinishedFragmentRunSuccessfully = 3,
}

/// A run of the script begins.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NewSession {
    /// What does not change while the session lasts.
    #[prost(message, optional, tag = "1")]
    pub initialize: Option<Initialize>,
    /// Which page runs.
    #[prost(string, tag = "9")]
    pub page_script_hash: String,
}

/// What does not change while the session lasts.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Initialize {
    /// What the server is.
    #[prost(message, optional, tag = "3")]
    pub environment_info: Option<EnvironmentInfo>,
    /// The session.
    #[prost(string, tag = "6")]
    pub session_id: String,
}

/// What the server is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EnvironmentInfo {
    /// Version of Streamlit.
    #[prost(string, tag = "1")]
    pub streamlit_version: String,
    /// Version of Python.
    #[prost(string, tag = "2")]
    pub python_version: String,
}

/// Whether a run is under way.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionStatus {
    /// It is.
    #[prost(bool, tag = "2")]
    pub script_is_running: bool,
}

/// Something happened to the session.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionEvent {
    /// The script does not compile.
    #[prost(message, optional, tag = "3")]
    pub script_compilation_exception: Option<Exception>,
}

/// Title and layout.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PageConfig {
    /// Title of the browser's tab.
    #[prost(string, tag = "1")]
    pub title: String,
}

/// Something is drawn.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Delta {
    /// What; `None` for what is not known here.
    #[prost(oneof = "delta::Type", tags = "3, 6")]
    pub r#type: Option<delta::Type>,
}

/// What a [`Delta`] draws.
pub mod delta {
    /// What is drawn.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Type {
        /// An element.
        #[prost(message, tag = "3")]
        NewElement(super::Element),
        /// A block that holds others.
        #[prost(message, tag = "6")]
        AddBlock(super::Block),
    }
}

/// An element.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Element {
    /// Which; `None` for what is not known here.
    #[prost(oneof = "element::Type", tags = "1, 8, 29, 30, 47, 48, 49")]
    pub r#type: Option<element::Type>,
}

/// Which [`Element`].
pub mod element {
    /// Which element.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Type {
        /// Plain text.
        #[prost(message, tag = "1")]
        Text(super::Text),
        /// An exception of the script.
        #[prost(message, tag = "8")]
        Exception(super::Exception),
        /// Markdown.
        #[prost(message, tag = "29")]
        Markdown(super::Markdown),
        /// A coloured box.
        #[prost(message, tag = "30")]
        Alert(super::Alert),
        /// A heading.
        #[prost(message, tag = "47")]
        Heading(super::Heading),
        /// Code.
        #[prost(message, tag = "48")]
        Code(super::Code),
        /// Where people type.
        #[prost(message, tag = "49")]
        ChatInput(super::ChatInput),
    }
}

/// Plain text.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Text {
    /// The text.
    #[prost(string, tag = "1")]
    pub body: String,
}

/// An exception of the script.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Exception {
    /// Its class.
    #[prost(string, tag = "1")]
    pub r#type: String,
    /// What it says.
    #[prost(string, tag = "2")]
    pub message: String,
    /// Where it came from.
    #[prost(string, repeated, tag = "3")]
    pub stack_trace: Vec<String>,
    /// Whether it is only a warning.
    #[prost(bool, tag = "5")]
    pub is_warning: bool,
}

/// Markdown.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Markdown {
    /// The text.
    #[prost(string, tag = "1")]
    pub body: String,
    /// 2 for a caption.
    #[prost(int32, tag = "4")]
    pub element_type: i32,
}

/// A coloured box.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Alert {
    /// The text.
    #[prost(string, tag = "1")]
    pub body: String,
    /// What it means.
    #[prost(enumeration = "AlertFormat", tag = "2")]
    pub format: i32,
}

/// What an [`Alert`] means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum AlertFormat {
    /// Nothing.
    Unused = 0,
    /// An error.
    Error = 1,
    /// A warning.
    Warning = 2,
    /// Information.
    Info = 3,
    /// Success.
    Success = 4,
}

/// A heading.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Heading {
    /// `h1` to `h6`.
    #[prost(string, tag = "1")]
    pub tag: String,
    /// The text.
    #[prost(string, tag = "3")]
    pub body: String,
}

/// Code.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Code {
    /// The text.
    #[prost(string, tag = "1")]
    pub code_text: String,
    /// Its language.
    #[prost(string, tag = "2")]
    pub language: String,
}

/// Where people type.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ChatInput {
    /// The widget's id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// What stands there before.
    #[prost(string, tag = "2")]
    pub placeholder: String,
    /// Whether nothing can be typed.
    #[prost(bool, tag = "4")]
    pub disabled: bool,
}

/// A block that holds others.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Block {
    /// Which; `None` for what is not known here.
    #[prost(oneof = "block::Type", tags = "4, 9")]
    pub r#type: Option<block::Type>,
}

/// Which [`Block`].
pub mod block {
    /// Which block.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Type {
        /// One that opens on a click.
        #[prost(message, tag = "4")]
        Expandable(super::Expandable),
        /// What one side of a chat says.
        #[prost(message, tag = "9")]
        ChatMessage(super::ChatMessage),
    }
}

/// A block that opens on a click.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Expandable {
    /// What is written on it.
    #[prost(string, tag = "1")]
    pub label: String,
}

/// What one side of a chat says.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ChatMessage {
    /// Which side: `user`, `assistant` or another name.
    #[prost(string, tag = "1")]
    pub name: String,
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    /// Bytes that Streamlit's own classes made.
    #[test]
    fn messages_are_those_of_streamlit() {
        let asked = BackMsg {
            rerun_script: Some(ClientState {
                widget_states: Some(WidgetStates {
                    widgets: vec![WidgetState {
                        id: "w".into(),
                        chat_input_value: Some(ChatInputValue { data: Some("hi".into()) }),
                    }],
                }),
                page_script_hash: "p".into(),
                ..ClientState::default()
            }),
        };
        assert_eq!(asked.encode_to_vec(), b"Z\x10\x12\x0b\x0a\x09\x0a\x01wz\x04\x0a\x02hi\x1a\x01p");
        let told = ForwardMsg::decode(&b"\x0a\x01h\x12\x08\x12\x03\x00\x03\x01\x22\x01a*\x12\x1a\x10\xea\x01\x08\x0a\x06**so**\xd2\x03\x02\x08\x01"[..]).unwrap();
        assert_eq!(told.metadata.unwrap().delta_path, [0, 3, 1]);
        let Some(forward_msg::Type::Delta(Delta { r#type: Some(delta::Type::NewElement(element)) })) = told.r#type
        else {
            panic!("not an element");
        };
        let Some(element::Type::Markdown(markdown)) = element.r#type else { panic!("not Markdown") };
        assert_eq!(markdown.body, "**so**");
        let ended = ForwardMsg::decode(&b"0\x00"[..]).unwrap();
        assert_eq!(ended.r#type, Some(forward_msg::Type::ScriptFinished(0)));
    }
}
