//! Reading a log as the public API shows it.

use std::{collections::HashMap, io, path::Path};

use belljar_api::{
    log::{LogLine, LogPage, LogProcess, LogProcessList},
    node::LogQuery,
};

use super::file::{Entry, read};
use crate::limits::{LOG_PAGE, LOG_RETENTION_DAYS};

/// The lines of the log at `path` that `query` asks for; none when there is no such file.
pub(crate) fn page(path: &Path, namespace: &str, query: &LogQuery) -> io::Result<LogPage> {
    let from = query.next_token.as_deref().and_then(|token| token.parse::<u64>().ok()).unwrap_or(0);
    let limit = query.head.or(query.tail).unwrap_or(LOG_PAGE).min(LOG_PAGE);
    let from_the_end = query.tail.is_some() && query.head.is_none();
    let mut entries = std::collections::VecDeque::new();
    let mut next = None;
    read_if_there(path, |entry| {
        if entry.n < from || !wanted(&entry, query) {
            return;
        }
        if entries.len() == limit {
            if !from_the_end {
                next = next.or(Some(entry.n));
                return;
            }
            entries.pop_front();
        }
        if limit > 0 {
            entries.push_back(entry);
        }
    })?;
    let logs = entries.into_iter().map(|entry| line(entry, namespace, &query.sandbox_id)).collect();
    Ok(LogPage { logs, next_token: next.map(|n| n.to_string()) })
}

/// The processes that wrote to the log at `path`.
pub(crate) fn processes(path: &Path) -> io::Result<LogProcessList> {
    let mut found: Vec<LogProcess> = Vec::new();
    let mut index: HashMap<i64, usize> = HashMap::new();
    read_if_there(path, |entry| {
        let Some(process) = entry.process else { return };
        let time = i64::try_from(entry.timestamp_ns).unwrap_or(i64::MAX);
        let at = *index.entry(process.handle).or_insert_with(|| {
            found.push(LogProcess {
                process_id: process.handle.to_string(),
                process_pid: process.pid.to_string(),
                process_command: process.command.clone(),
                process_managed_id: process.managed_id.clone(),
                process_managed_name: process.managed_name.clone(),
                first_seen: time,
                last_seen: time,
                log_count: 0,
            });
            found.len() - 1
        });
        found[at].last_seen = time;
        found[at].log_count += 1;
    })?;
    Ok(LogProcessList { processes: found })
}

fn read_if_there(path: &Path, each: impl FnMut(Entry)) -> io::Result<()> {
    match read(path, each) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn wanted(entry: &Entry, query: &LogQuery) -> bool {
    let level = query.levels.is_empty() || query.levels.contains(&entry.level);
    let process = query.process_ids.is_empty()
        || entry.process.as_ref().is_some_and(|process| query.process_ids.contains(&process.handle.to_string()));
    level && process && query.body.as_ref().is_none_or(|text| entry.body.contains(text.as_str()))
}

fn line(entry: Entry, namespace: &str, sandbox_id: &str) -> LogLine {
    let (resource_attributes, log_attributes) = match entry.process {
        Some(process) => {
            let id = process.handle.to_string();
            let attributes = serde_json::json!({
                "stream": process.stream, "processId": id, "pid": process.pid, "command": process.command,
            });
            (vec![("processId".to_owned(), id)], attributes.to_string())
        }
        None => (Vec::new(), "{}".to_owned()),
    };
    LogLine {
        timestamp: entry.timestamp_ns,
        uuid: entry.uuid,
        namespace: namespace.to_owned(),
        application: String::new(),
        sandbox_id: sandbox_id.to_owned(),
        resource_attributes,
        body: entry.body,
        log_attributes,
        allocations: Vec::new(),
        function_runs: Vec::new(),
        level: entry.level,
        retention: LOG_RETENTION_DAYS,
    }
}

#[cfg(test)]
mod tests {
    use belljar_api::{guest::LogEvent, log::level, process::OutputStream};

    use super::*;
    use crate::logs::file::{LogFile, path};

    fn event(seq: u64, handle: i64, stream: OutputStream, line: &str) -> LogEvent {
        LogEvent {
            seq,
            timestamp_ns: seq,
            handle,
            pid: handle + 100,
            command: "sh".into(),
            managed_id: String::new(),
            managed_name: String::new(),
            stream,
            line: line.into(),
        }
    }

    fn check(dir: &Path, query: LogQuery, expected: &[&str]) -> Option<String> {
        let page = page(&path(dir, "x"), "default", &query).expect("page");
        assert_eq!(page.logs.iter().map(|line| line.body.as_str()).collect::<Vec<_>>(), expected, "{query:?}");
        page.next_token
    }

    #[test]
    fn a_log_is_filtered_paged_and_goes_on_after_a_restart() {
        let dir = tempfile::tempdir().expect("tempdir");
        let log = LogFile::open(dir.path(), "x").expect("open");
        log.note(level::INFO, "started");
        log.store(event(1, 1, OutputStream::Stdout, "one")).expect("store");
        log.store(event(2, 2, OutputStream::Stderr, "two")).expect("store");
        drop(log);
        let log = LogFile::open(dir.path(), "x").expect("open again");
        assert_eq!(log.guest_seq(), 2);
        log.store(event(5, 1, OutputStream::Stdout, "three")).expect("store");

        let all = ["started", "one", "two", "three"];
        check(dir.path(), LogQuery::default(), &all);
        check(dir.path(), LogQuery { levels: vec![level::ERROR], ..Default::default() }, &["two"]);
        check(dir.path(), LogQuery { process_ids: vec!["1".into()], ..Default::default() }, &["one", "three"]);
        check(dir.path(), LogQuery { body: Some("t".into()), ..Default::default() }, &["started", "two", "three"]);
        check(dir.path(), LogQuery { tail: Some(1), ..Default::default() }, &["three"]);
        let next = check(dir.path(), LogQuery { head: Some(3), ..Default::default() }, &all[..3]);
        check(dir.path(), LogQuery { next_token: next, ..Default::default() }, &["three"]);
        check(dir.path(), LogQuery { head: Some(0), ..Default::default() }, &[]);

        let processes = processes(&path(dir.path(), "x")).expect("processes").processes;
        assert_eq!(
            processes.iter().map(|p| (p.process_id.as_str(), p.log_count)).collect::<Vec<_>>(),
            [("1", 2), ("2", 1)]
        );
    }
}
