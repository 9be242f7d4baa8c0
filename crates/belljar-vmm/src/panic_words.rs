//! What a guest's kernel said before it gave up.

use crate::limits::PANIC_CHARS;

/// The guest kernel's last words, if the console shows them. The console is the guest's: it can pretend.
pub(crate) fn panic_message(console: &[u8]) -> Option<String> {
    const MARK: &str = "Kernel panic - not syncing: ";
    let text = String::from_utf8_lossy(console);
    let (_, message) = text.rsplit_once(MARK)?;
    let line = message.lines().next().unwrap_or_default();
    Some(line.chars().filter(|c| !c.is_control()).take(PANIC_CHARS).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_message_is_found_cut_and_cleaned() {
        let check = |console: &[u8], expected: Option<&str>| {
            assert_eq!(panic_message(console).as_deref(), expected, "{}", String::from_utf8_lossy(console));
        };
        check(b"", None);
        check(b"reboot: Restarting system\r\n", None);
        check(
            b"x\r\n[    0.1] Kernel panic - not syncing: Attempted to kill init!\r\nCPU: 0\r\n",
            Some("Attempted to kill init!"),
        );
        check(b"\xff\xfeKernel panic - not syncing: a\x1b[2Jb", Some("a[2Jb"));
        let long = format!("Kernel panic - not syncing: {}", "x".repeat(1000));
        check(long.as_bytes(), Some("x".repeat(PANIC_CHARS).as_str()));
    }
}
