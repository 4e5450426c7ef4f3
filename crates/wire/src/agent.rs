//! Frames between host and guest agent.
