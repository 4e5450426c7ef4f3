//! The port to the host: frames in, frames out, never blocking.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use wire::agent::{AgentMessage, FrameReader, HostMessage, encode_frame};

/// Bytes waiting for a host that does not read; above it nothing more is taken from the host until it reads.
const OUTPUT_BYTES_MAX: usize = 256 << 10;

pub struct Port {
    file: File,
    reader: FrameReader,
    output: Vec<u8>,
}

impl Port {
    pub fn new(file: File) -> Port {
        Port { file, reader: FrameReader::new(), output: Vec::new() }
    }

    /// Queues a message and writes what the port takes now.
    pub fn send(&mut self, message: &AgentMessage) {
        match encode_frame(message) {
            Ok(frame) => self.output.extend_from_slice(&frame),
            Err(error) => println!("muster: answer not sent: {error}"),
        }
        self.flush();
    }

    /// Writes what the port takes now. What it does not take waits.
    pub fn flush(&mut self) {
        while !self.output.is_empty() {
            match self.file.write(&self.output) {
                Ok(0) | Err(_) => return,
                Ok(count) => drop(self.output.drain(..count)),
            }
        }
    }

    /// Reads what is there, once.
    pub fn fill(&mut self) {
        let mut chunk = [0; 4096];
        if let Ok(count) = self.file.read(&mut chunk) {
            self.reader.push(&chunk[..count]);
        }
    }

    /// The next whole message.
    pub fn receive(&mut self) -> Option<HostMessage> {
        loop {
            match self.reader.next_message() {
                Ok(message) => return message,
                Err(error) => println!("muster: message from the host not understood: {error}"),
            }
        }
    }

    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    pub fn wants_input(&self) -> bool {
        self.output.len() < OUTPUT_BYTES_MAX
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
