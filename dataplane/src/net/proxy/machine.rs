//! What a proxy tells of its machine: cores and memory, of which a coordinator derives what it can hold.

use std::num::NonZeroUsize;

/// Memory of the machine, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// All of it, or what the control group allows.
    pub total: u64,
    /// What is to be had.
    pub available: u64,
    /// Of this process.
    pub resident: u64,
    /// The most of this process that was.
    pub resident_max: u64,
}

/// What the process beside its tasks, and the rest of the machine, are left.
const RESERVE: u64 = 512 << 20;

/// Cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// Tasks to run at once, unless somebody says otherwise: twice the cores, as far as memory goes.
pub fn default_streams(cores: usize, memory_total: u64, bytes_per_stream: u64) -> usize {
    let by_memory = memory_total.saturating_sub(RESERVE) / bytes_per_stream.max(1);
    (2 * cores).min(by_memory as usize).max(1)
}

/// Looks at `/proc`. What cannot be read is 0.
pub fn memory() -> Memory {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (machine, own) = (read("/proc/meminfo"), read("/proc/self/status"));
    let total = figure(&machine, "MemTotal:");
    let allowed = read("/sys/fs/cgroup/memory.max").trim().parse();
    Memory {
        total: allowed.map_or(total, |allowed: u64| allowed.min(total)),
        available: figure(&machine, "MemAvailable:"),
        resident: figure(&own, "VmRSS:"),
        resident_max: figure(&own, "VmHWM:"),
    }
}

/// A line like `VmRSS:   1234 kB`, in bytes.
fn figure(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    let number = number.and_then(|number| number.parse::<u64>().ok());
    number.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_follow_cores_and_memory() {
        assert_eq!(default_streams(2, 16 << 30, 112 << 20), 4);
        assert_eq!(default_streams(32, 4 << 30, 256 << 20), 14);
        assert_eq!(default_streams(8, 256 << 20, 112 << 20), 1);
    }

    #[test]
    fn this_process_takes_memory() {
        let memory = memory();
        assert!(memory.resident > 0 && memory.resident <= memory.resident_max);
        assert!(
            memory.available
                <= figure(
                    &std::fs::read_to_string("/proc/meminfo").unwrap(),
                    "MemTotal:"
                )
        );
    }
}
