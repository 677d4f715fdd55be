//! Words that a device writes into the host's memory while it works on.

use crate::{Device, cuda};

/// Slots of words that kernels write and the host reads without stopping the device: it waits for a slot's mark alone.
#[derive(Debug)]
pub struct Mailbox {
    device: Device,
    slots: usize,
    words: usize,
    inner: cuda::Mailbox,
}

impl Mailbox {
    /// `slots` times `words` words that `device` can write; none for the host, which needs none. A device that fails
    /// [raises](crate::DeviceError::raise).
    pub fn new(device: Device, slots: usize, words: usize) -> Option<Self> {
        let Device::Cuda(index) = device else { return None };
        Some(Self { device, slots, words, inner: cuda::Mailbox::new(index, slots, slots * words) })
    }

    /// Whose it is.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Where the device writes: slot after slot.
    pub fn address(&self) -> u64 {
        self.inner.address()
    }

    /// How many slots.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Words of a slot.
    pub fn words(&self) -> usize {
        self.words
    }

    /// What was asked of the device until now writes `slot`.
    ///
    /// # Panics
    /// When there is no such slot.
    pub fn mark(&self, slot: usize) {
        self.inner.mark(slot);
    }

    /// The words of `slot`; waits for what was asked of the device before its last mark.
    ///
    /// # Panics
    /// When there is no such slot.
    pub fn read(&self, slot: usize) -> Vec<u32> {
        assert!(slot < self.slots, "slot {slot} of {}", self.slots);
        self.inner.read(slot, slot * self.words, self.words)
    }
}
