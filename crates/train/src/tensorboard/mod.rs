//! Scalars for TensorBoard.
//!
//! An event file is a sequence of TFRecords: the length of the payload (u64, little endian), the masked CRC-32C of those
//! eight bytes, the payload, and the masked CRC-32C of the payload. Each payload is an `Event` message in the protocol
//! buffers encoding (tensorflow/core/util/event.proto, tensorflow/core/framework/summary.proto). A few fields are all
//! that is needed, so they are encoded by hand:
//!
//! | message | fields |
//! |---|---|
//! | Event | 1 wall_time: double, 2 step: int64, 3 file_version: string, 5 summary: Summary, 7 session_log: SessionLog |
//! | Summary | 1 value: repeated Value |
//! | Value | 1 tag: string, 2 simple_value: float |
//! | SessionLog | 1 status: enum, 1 = START |

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// An event file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}", path.display())]
pub struct EventError {
    /// The event file or its folder.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// Writes one event file.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Starts a new event file in `folder`, which is made if needed. TensorBoard shows the scalars of all files in a
    /// folder as one run; of earlier files it forgets what lies after `resumed_step`.
    ///
    /// # Errors
    /// When the folder or the file cannot be made or written.
    pub fn create(folder: &Path, resumed_step: Option<u64>) -> Result<Self, EventError> {
        let error = |source| EventError { path: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(error)?;
        let now = wall_time();
        let (path, file) = new_file(folder, now as u64).map_err(error)?;
        let mut writer = Self { path, file };
        writer.append(&version_event(now))?;
        if let Some(step) = resumed_step {
            // A start at step s makes TensorBoard forget the steps from s on.
            writer.append(&start_event(now, step.saturating_add(1)))?;
        }
        Ok(writer)
    }

    /// Appends `value` of the curve `tag` at `step`. TensorBoard groups tags by what stands before their first slash.
    ///
    /// # Errors
    /// When the system refuses, such as on a full disk.
    pub fn scalar(&mut self, tag: &str, step: u64, value: f64) -> Result<(), EventError> {
        self.append(&scalar_event(wall_time(), tag, step, value))
    }

    fn append(&mut self, event: &Message) -> Result<(), EventError> {
        // One call, so that a killed process loses at most the end of the last record.
        let written = self.file.write_all(&record(&event.0));
        written.map_err(|source| EventError { path: self.path.clone(), source })
    }
}

/// Makes the first free name of the form that TensorBoard looks for and sorts by.
fn new_file(folder: &Path, seconds: u64) -> io::Result<(PathBuf, File)> {
    let process = std::process::id();
    let mut serial = 0;
    loop {
        let path = folder.join(format!("events.out.tfevents.{seconds:010}.keyfold.{process}.{serial}"));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => serial += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Seconds since 1970.
fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn version_event(wall_time: f64) -> Message {
    Message::event(wall_time, 0).bytes(3, b"brain.Event:2")
}

fn start_event(wall_time: f64, step: u64) -> Message {
    Message::event(wall_time, step).message(7, &Message::default().varint(1, 1))
}

fn scalar_event(wall_time: f64, tag: &str, step: u64, value: f64) -> Message {
    let value = Message::default().bytes(1, tag.as_bytes()).float(2, value as f32);
    Message::event(wall_time, step).message(5, &Message::default().message(1, &value))
}

/// A TFRecord with `payload`.
fn record(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(payload.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(payload);
    record.extend(masked_crc(payload).to_le_bytes());
    record
}

/// CRC-32C, rotated and offset, so that a checksum of data that holds checksums stays strong.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A message in the protocol buffers encoding, built field by field.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn event(wall_time: f64, step: u64) -> Self {
        let event = Self::default().double(1, wall_time);
        // Zero is what a missing field means, and is left out by every encoder.
        if step == 0 { event } else { event.varint(2, step) }
    }

    fn double(mut self, field: u8, value: f64) -> Self {
        self.0.push(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn float(mut self, field: u8, value: f32) -> Self {
        self.0.push(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn varint(mut self, field: u8, value: u64) -> Self {
        self.0.push(field << 3);
        self.raw_varint(value);
        self
    }

    fn bytes(mut self, field: u8, value: &[u8]) -> Self {
        self.0.push(field << 3 | 2);
        self.raw_varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    fn message(self, field: u8, value: &Self) -> Self {
        self.bytes(field, &value.0)
    }

    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

#[cfg(test)]
mod tests;
