//! The methods of both protocols.

use std::fmt;

/// Makes the list of methods: name, words (the first is the usual one), form, sender and protocol.
macro_rules! methods {
    ($($(#[$doc:meta])* $name:ident = $($word:literal)|+, $form:ident, $sender:ident, $protocol:ident;)*) => {
        /// What a message asks for or tells.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Method {
            $($(#[$doc])* $name,)*
            /// A method that is not known here. Case counts: `Tools/Call` is such a one.
            Other(String),
        }

        impl Method {
            /// The method that a word means.
            #[must_use]
            pub fn of(word: &str) -> Self {
                match word {
                    $($($word)|+ => Self::$name,)*
                    other => Self::Other(other.to_owned()),
                }
            }

            /// The word, in its usual form: `tools/call`.
            #[must_use]
            pub fn word(&self) -> &str {
                match self {
                    $(Self::$name => first(&[$($word),+]),)*
                    Self::Other(word) => word,
                }
            }

            /// Whether it is asked or told; `None` if it is not known here.
            #[must_use]
            pub const fn form(&self) -> Option<Form> {
                match self {
                    $(Self::$name => Some(Form::$form),)*
                    Self::Other(_) => None,
                }
            }

            /// Who may send it; `None` if it is not known here.
            #[must_use]
            pub const fn sender(&self) -> Option<Sender> {
                match self {
                    $(Self::$name => Some(Sender::$sender),)*
                    Self::Other(_) => None,
                }
            }

            /// Whose it is; `None` if it is not known here.
            #[must_use]
            pub const fn protocol(&self) -> Option<Protocol> {
                match self {
                    $(Self::$name => Some(Protocol::$protocol),)*
                    Self::Other(_) => None,
                }
            }

            /// All methods that are known here.
            #[cfg(test)]
            pub(super) const ALL: &'static [(&'static [&'static str], Self)] = &[$((&[$($word),+], Self::$name)),*];
        }
    };
}

const fn first(words: &'static [&'static str]) -> &'static str {
    match words {
        [first, ..] => first,
        [] => "",
    }
}

methods! {
    /// The card of an agent, for those who may see more.
    AgentExtendedCard = "agent/getAuthenticatedExtendedCard" | "agent/authenticatedExtendedCard" | "GetExtendedAgentCard",
        Request, Client, A2a;
    /// Suggestions for an argument.
    CompletionComplete = "completion/complete", Request, Client, Mcp;
    /// Asks the person at the client.
    ElicitationCreate = "elicitation/create", Request, Server, Mcp;
    /// Begins a session.
    Initialize = "initialize", Request, Client, Mcp;
    /// How much the server is to log.
    LoggingSetLevel = "logging/setLevel", Request, Client, Mcp;
    /// A message to an agent.
    MessageSend = "message/send" | "tasks/send" | "SendMessage", Request, Client, A2a;
    /// A message to an agent, whose answer is a stream.
    MessageStream = "message/stream" | "tasks/sendSubscribe" | "SendStreamingMessage", Request, Client, A2a;
    /// A request is not waited for any more.
    NotificationCancelled = "notifications/cancelled", Notification, Either, Mcp;
    /// A person answered elsewhere.
    NotificationElicitationComplete = "notifications/elicitation/complete", Notification, Server, Mcp;
    /// The session has begun.
    NotificationInitialized = "notifications/initialized", Notification, Client, Mcp;
    /// A line of the server's log.
    NotificationMessage = "notifications/message", Notification, Server, Mcp;
    /// How far a request is.
    NotificationProgress = "notifications/progress", Notification, Either, Mcp;
    /// Prompts changed.
    NotificationPromptsChanged = "notifications/prompts/list_changed", Notification, Server, Mcp;
    /// Resources changed.
    NotificationResourcesChanged = "notifications/resources/list_changed", Notification, Server, Mcp;
    /// A resource has new content.
    NotificationResourceUpdated = "notifications/resources/updated", Notification, Server, Mcp;
    /// Roots changed.
    NotificationRootsChanged = "notifications/roots/list_changed", Notification, Client, Mcp;
    /// A subscription stands.
    NotificationSubscribed = "notifications/subscriptions/acknowledged", Notification, Server, Mcp;
    /// How a task stands.
    NotificationTaskStatus = "notifications/tasks/status", Notification, Either, Mcp;
    /// Tools changed.
    NotificationToolsChanged = "notifications/tools/list_changed", Notification, Server, Mcp;
    /// Whether the other is there.
    Ping = "ping", Request, Either, Mcp;
    /// One prompt.
    PromptsGet = "prompts/get", Request, Client, Mcp;
    /// All prompts.
    PromptsList = "prompts/list", Request, Client, Mcp;
    /// The agent is no longer to call back.
    PushConfigDelete = "tasks/pushNotificationConfig/delete" | "DeleteTaskPushNotificationConfig", Request, Client, A2a;
    /// Where the agent calls back.
    PushConfigGet = "tasks/pushNotificationConfig/get" | "tasks/pushNotification/get" | "GetTaskPushNotificationConfig",
        Request, Client, A2a;
    /// All places where the agent calls back.
    PushConfigList = "tasks/pushNotificationConfig/list" | "ListTaskPushNotificationConfigs", Request, Client, A2a;
    /// Where the agent is to call back: an address that it will send to.
    PushConfigSet = "tasks/pushNotificationConfig/set" | "tasks/pushNotification/set" | "CreateTaskPushNotificationConfig",
        Request, Client, A2a;
    /// All resources.
    ResourcesList = "resources/list", Request, Client, Mcp;
    /// The content of a resource.
    ResourcesRead = "resources/read", Request, Client, Mcp;
    /// Changes of a resource are to be told.
    ResourcesSubscribe = "resources/subscribe", Request, Client, Mcp;
    /// All templates of resources.
    ResourcesTemplatesList = "resources/templates/list", Request, Client, Mcp;
    /// Changes of a resource are not to be told any more.
    ResourcesUnsubscribe = "resources/unsubscribe", Request, Client, Mcp;
    /// Where the server may work.
    RootsList = "roots/list", Request, Server, Mcp;
    /// Has the client's model write.
    SamplingCreateMessage = "sampling/createMessage", Request, Server, Mcp;
    /// What the server is and can do.
    ServerDiscover = "server/discover", Request, Client, Mcp;
    /// Changes are to be told in this stream.
    SubscriptionsListen = "subscriptions/listen", Request, Client, Mcp;
    /// A task is not wanted any more.
    TasksCancel = "tasks/cancel" | "CancelTask", Request, Either, Both;
    /// How a task stands.
    TasksGet = "tasks/get" | "GetTask", Request, Either, Both;
    /// All tasks.
    TasksList = "tasks/list" | "ListTasks", Request, Either, Both;
    /// What a task brought.
    TasksResult = "tasks/result", Request, Either, Mcp;
    /// The stream of a task once more.
    TasksResubscribe = "tasks/resubscribe" | "SubscribeToTask", Request, Client, A2a;
    /// What a task asked for.
    TasksUpdate = "tasks/update", Request, Client, Mcp;
    /// Calls a tool.
    ToolsCall = "tools/call", Request, Client, Mcp;
    /// All tools.
    ToolsList = "tools/list", Request, Client, Mcp;
}

/// Whether a method is asked, and so answered, or told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Form {
    /// It is told.
    Notification,
    /// It is asked.
    Request,
}

/// Who may send a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sender {
    /// The client, which is the agent in the fence.
    Client,
    /// Both.
    Either,
    /// The server.
    Server,
}

/// Whose method it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// The Agent2Agent Protocol.
    A2a,
    /// Both have it.
    Both,
    /// The Model Context Protocol.
    Mcp,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
