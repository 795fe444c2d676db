//! The macro that turns the list of verbs into a trait, a server, a client, and what its document says of them.

/// Defines the control API.
///
/// `call` answers once, `stream` answers with any number of items and then ends. For each verb the trait gets a
/// method, the server a route `POST /v1/<verb>`, and the client a method of the same name.
macro_rules! control_api {
    ($($(#[doc = $doc:literal])* $kind:ident $name:ident($request:ty) -> $answer:ty;)*) => {
        /// What a supervisor does for its callers.
        pub trait Control: Send + Sync + 'static {
            $(control_api!(@method $kind $(#[doc = $doc])* $name, $request, $answer);)*

            /// Told once for every verb that ended, whatever its outcome; this is where it is recorded.
            fn ended(&self, caller: $crate::server::Caller, verb: &'static str, subject: &str, result: Result<(), &ringfence_model::Report>);
        }

        /// The names of all verbs, in the order of their definition.
        pub const VERBS: &[&str] = &[$(stringify!($name)),*];

        /// Whether a verb answers with any number of items.
        pub(crate) fn streams(verb: &str) -> bool {
            match verb {
                $(stringify!($name) => control_api!(@streams $kind),)*
                _ => false,
            }
        }

        /// What the document says of each verb, in the order of their definition.
        #[cfg(feature = "schema")]
        pub(crate) fn described(schemas: &mut $crate::document::Schemas) -> Vec<$crate::document::Verb> {
            vec![$($crate::document::Verb {
                name: stringify!($name),
                about: concat!($($doc),*).trim(),
                request: schemas.request::<$request>(),
                answer: schemas.answer::<$answer>(),
            }),*]
        }

        /// Runs the verb that a path names.
        pub(crate) async fn dispatch<C: Control>(
            control: std::sync::Arc<C>,
            caller: $crate::server::Caller,
            verb: &str,
            body: &[u8],
            sink: $crate::server::RawSink,
        ) {
            match verb {
                $(stringify!($name) => control_api!(@run $kind control, caller, $name, $request, body, sink),)*
                other => sink.fail(&$crate::server::unknown(other)).await,
            }
        }

        impl Client {
            $(control_api!(@client $kind $(#[doc = $doc])* $name, $request, $answer);)*
        }
    };

    (@streams call) => { false };
    (@streams stream) => { true };

    (@method call $(#[doc = $doc:literal])* $name:ident, $request:ty, $answer:ty) => {
        $(#[doc = $doc])*
        fn $name(&self, caller: $crate::server::Caller, request: $request)
            -> impl Future<Output = Result<$answer, ringfence_model::Report>> + Send;
    };
    (@method stream $(#[doc = $doc:literal])* $name:ident, $request:ty, $answer:ty) => {
        $(#[doc = $doc])*
        fn $name(&self, caller: $crate::server::Caller, request: $request, sink: $crate::server::Sink<$answer>)
            -> impl Future<Output = Result<(), ringfence_model::Report>> + Send;
    };

    (@run call $control:ident, $caller:ident, $name:ident, $request:ty, $body:ident, $sink:ident) => {{
        let request: $request = match $crate::server::parse($body) {
            Ok(request) => request,
            Err(report) => return $sink.fail(&report).await,
        };
        let subject = $crate::server::short(&$crate::api::Subject::subject(&request));
        let result = $control.$name($caller, request).await;
        $control.ended($caller, stringify!($name), &subject, result.as_ref().map(|_| ()));
        match result {
            Ok(answer) => $sink.answer(&answer).await,
            Err(report) => $sink.fail(&report).await,
        }
    }};
    (@run stream $control:ident, $caller:ident, $name:ident, $request:ty, $body:ident, $sink:ident) => {{
        let request: $request = match $crate::server::parse($body) {
            Ok(request) => request,
            Err(report) => return $sink.fail(&report).await,
        };
        let subject = $crate::server::short(&$crate::api::Subject::subject(&request));
        let result = $control.$name($caller, request, $crate::server::Sink::over($sink.clone())).await;
        $control.ended($caller, stringify!($name), &subject, result.as_ref().map(|_| ()));
        match result {
            Ok(()) => $sink.end().await,
            Err(report) => $sink.fail(&report).await,
        }
    }};

    (@client call $(#[doc = $doc:literal])* $name:ident, $request:ty, $answer:ty) => {
        $(#[doc = $doc])*
        ///
        /// # Errors
        /// The supervisor's report, or one that says it cannot be reached.
        pub async fn $name(&self, request: &$request) -> Result<$answer, ringfence_model::Report> {
            self.once(stringify!($name), request).await
        }
    };
    (@client stream $(#[doc = $doc:literal])* $name:ident, $request:ty, $answer:ty) => {
        $(#[doc = $doc])*
        ///
        /// # Errors
        /// The supervisor's report, or one that says it cannot be reached.
        pub async fn $name(
            &self,
            request: &$request,
            each: impl FnMut($answer) -> bool,
        ) -> Result<(), ringfence_model::Report> {
            self.each(stringify!($name), request, each).await
        }
    };
}

pub(crate) use control_api;
