//! What [`crate::cuda`] answers in a build without it: no such device can be opened, so nothing of it is ever held.

use crate::{Device, DeviceError, tensor::Rows};
use std::ptr::NonNull;

fn absent(index: usize) -> DeviceError {
    DeviceError::NotBuilt(Device::Cuda(index))
}

pub(crate) fn open(index: usize) -> Result<(), DeviceError> {
    Err(absent(index))
}

pub(crate) fn describe(_: usize) -> Option<String> {
    None
}

pub(crate) fn memory(_: usize) -> Option<(u64, u64)> {
    None
}

pub(crate) fn synchronize(_: usize) {}

pub(crate) fn allocate(index: usize, _: usize) -> Result<Option<NonNull<u8>>, DeviceError> {
    Err(absent(index))
}

pub(crate) fn free(_: usize, _: NonNull<u8>) {}

pub(crate) fn fill(index: usize, _: u64, _: Rows, _: u8) {
    absent(index).raise()
}

pub(crate) fn upload(index: usize, _: u64, _: Rows, _: &[u8]) {
    absent(index).raise()
}

pub(crate) fn download(index: usize, _: u64, _: Rows, _: &mut [u8]) {
    absent(index).raise()
}

/// Never made.
#[derive(Debug)]
pub(crate) struct Recorded;

pub(crate) fn record(index: usize, _: impl FnOnce()) -> Recorded {
    absent(index).raise()
}

pub(crate) fn start(index: usize, _: &Recorded) {
    absent(index).raise()
}

/// Never made.
#[derive(Debug)]
pub(crate) struct Mailbox;

impl Mailbox {
    pub(crate) fn new(index: usize, _: usize, _: usize) -> Self {
        absent(index).raise()
    }

    pub(crate) fn address(&self) -> u64 {
        0
    }

    pub(crate) fn mark(&self, _: usize) {}

    pub(crate) fn read(&self, _: usize, _: usize, _: usize) -> Vec<u32> {
        Vec::new()
    }
}
