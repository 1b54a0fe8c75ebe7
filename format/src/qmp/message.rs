//! What a monitor says, and how it is asked.

use serde_json::{Map, Value, json};

use super::QmpError;
use super::frames::Frame;

/// What a monitor said.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// The first message of a connection.
    Greeting(Version),
    /// A command is done.
    Return {
        /// The command's number; none if it had none.
        id: Option<u64>,
        /// What it gave.
        value: Value,
    },
    /// A command failed.
    Error {
        /// The command's number; none if QEMU could not read it.
        id: Option<u64>,
        /// Why.
        refusal: Refusal,
    },
    /// Something happened.
    Event {
        /// What.
        name: String,
        /// To what.
        data: Value,
    },
}

/// QEMU's version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// As in 7.2.
    pub major: u64,
    /// As in 7.2.
    pub minor: u64,
}

/// QEMU's reason to refuse a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{description} ({class})")]
pub struct Refusal {
    /// `GenericError`, `CommandNotFound`, `DeviceNotFound` ...
    pub class: String,
    /// Meant for people: its words change with QEMU's version.
    pub description: String,
}

impl Refusal {
    /// Whether QEMU does not know the command: it is older, or built without it.
    pub fn is_unknown_command(&self) -> bool {
        self.class == "CommandNotFound"
    }
}

impl Message {
    /// What a frame says.
    ///
    /// # Errors
    /// [`QmpError::Kind`].
    pub fn of(frame: Frame) -> Result<Self, QmpError> {
        let Frame { offset, value } = frame;
        let none = QmpError::Kind { offset };
        let Value::Object(mut fields) = value else {
            return Err(none);
        };
        if let Some(greeting) = fields.get("QMP") {
            return Ok(Self::Greeting(version(greeting)));
        }
        let id = fields.get("id").and_then(Value::as_u64);
        if let Some(value) = fields.remove("return") {
            return Ok(Self::Return { id, value });
        }
        if let Some(error) = fields.get("error") {
            return Ok(Self::Error {
                id,
                refusal: refusal(error),
            });
        }
        match fields.remove("event") {
            Some(Value::String(name)) => Ok(Self::Event {
                name,
                data: fields.remove("data").unwrap_or_default(),
            }),
            _ => Err(none),
        }
    }
}

fn version(greeting: &Value) -> Version {
    let qemu = &greeting["version"]["qemu"];
    Version {
        major: qemu["major"].as_u64().unwrap_or_default(),
        minor: qemu["minor"].as_u64().unwrap_or_default(),
    }
}

fn refusal(error: &Value) -> Refusal {
    let text = |field: &str| error[field].as_str().unwrap_or_default().to_owned();
    Refusal {
        class: text("class"),
        description: text("desc"),
    }
}

/// The bytes of a command.
pub fn command(name: &str, arguments: &Value, id: u64) -> Vec<u8> {
    let mut message = Map::new();
    message.insert("execute".to_owned(), json!(name));
    if !arguments.is_null() {
        message.insert("arguments".to_owned(), arguments.clone());
    }
    message.insert("id".to_owned(), json!(id));
    let mut bytes = Value::Object(message).to_string().into_bytes();
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(value: Value) -> Result<Message, QmpError> {
        Message::of(Frame { offset: 7, value })
    }

    #[test]
    fn qemus_messages_are_understood() {
        let greeting = json!({"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7},
            "package": "Debian 1:7.2+dfsg-7"}, "capabilities": ["oob"]}});
        let version = Version { major: 7, minor: 2 };
        assert_eq!(message(greeting), Ok(Message::Greeting(version)));
        assert_eq!(
            message(json!({"return": {"running": true}, "id": 3})),
            Ok(Message::Return {
                id: Some(3),
                value: json!({"running": true})
            })
        );
        let error = json!({"id": 4, "error": {"class": "CommandNotFound", "desc": "not found"}});
        let Ok(Message::Error { id, refusal }) = message(error) else {
            panic!("an error");
        };
        assert_eq!(id, Some(4));
        assert!(refusal.is_unknown_command());
        assert_eq!(refusal.to_string(), "not found (CommandNotFound)");
        let event = json!({"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}});
        assert_eq!(
            message(event),
            Ok(Message::Event {
                name: "STOP".to_owned(),
                data: Value::Null
            })
        );
        assert_eq!(message(json!({"id": 1})), Err(QmpError::Kind { offset: 7 }));
        assert_eq!(
            message(json!({"event": 1})),
            Err(QmpError::Kind { offset: 7 })
        );
    }

    #[test]
    fn commands_are_lines_of_json() {
        let bytes = command("job-cancel", &json!({"id": "j\n"}), 9);
        let text = String::from_utf8(bytes).expect("text");
        assert_eq!(text.find('\n'), Some(text.len() - 1));
        let value: Value = serde_json::from_str(&text).expect("JSON");
        let expected = json!({"execute": "job-cancel", "arguments": {"id": "j\n"}, "id": 9});
        assert_eq!(value, expected);
        let bytes = command("stop", &Value::Null, 1);
        assert!(!String::from_utf8_lossy(&bytes).contains("arguments"));
    }
}
