//! The headers of the program's file: 64-bit little-endian ELF.

use std::fs;

use super::process::program;

pub struct Elf(Vec<u8>);

impl Elf {
    /// The program under test.
    pub fn of_the_program() -> Self {
        let elf = fs::read(program()).expect("read the program");
        assert_eq!(&elf[..6], b"\x7fELF\x02\x01");
        Self(elf)
    }

    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    fn number(&self, at: usize, size: usize) -> usize {
        let bytes = self.0[at..at + size].iter().rev();
        bytes.fold(0, |sum, byte| (sum << 8) | usize::from(*byte))
    }

    /// The types of its segments.
    pub fn segments(&self) -> Vec<usize> {
        let (table, size) = (self.number(0x20, 8), self.number(0x36, 2));
        (0..self.number(0x38, 2)).map(|n| self.number(table + n * size, 4)).collect()
    }

    /// What the section of this name holds.
    pub fn section(&self, wanted: &str) -> Option<&[u8]> {
        let (table, size) = (self.number(0x28, 8), self.number(0x3a, 2));
        let header = |n: usize| table + n * size;
        let names = self.number(header(self.number(0x3e, 2)) + 0x18, 8);
        let mut headers = (0..self.number(0x3c, 2)).map(header);
        let found = headers.find(|header| {
            let name = &self.0[names + self.number(*header, 4)..];
            name.starts_with(wanted.as_bytes()) && name[wanted.len()] == 0
        })?;
        let offset = self.number(found + 0x18, 8);
        Some(&self.0[offset..offset + self.number(found + 0x20, 8)])
    }
}
