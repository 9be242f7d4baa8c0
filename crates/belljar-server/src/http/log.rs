//! `/sandboxes/{ref}/logs` and `/sandboxes/{ref}/processes`.

use axum::response::Response;
use belljar_api::node::LogQuery;
use http::StatusCode;

use super::{Call, Query};
use crate::{
    error::{ApiError, json},
    limits::PAGE_MAX,
};

/// Most lines that one page may ask for.
const LINES_MAX: usize = 10 * PAGE_MAX;

pub(super) async fn lines(call: Call) -> Result<Response, ApiError> {
    let mut query = parse(&call.query)?;
    let row = call.app.find(&call.namespace, call.param("ref")).await?;
    query.sandbox_id.clone_from(&row.id);
    Ok(json(StatusCode::OK, &call.app.logs(&row, &query).await?))
}

pub(super) async fn processes(call: Call) -> Result<Response, ApiError> {
    let row = call.app.find(&call.namespace, call.param("ref")).await?;
    Ok(json(StatusCode::OK, &call.app.log_processes(&row).await?))
}

fn parse(query: &Query) -> Result<LogQuery, ApiError> {
    let level = |text: &str| {
        let level = text.parse().ok().filter(|level| (1..=6).contains(level));
        level.ok_or_else(|| ApiError::invalid("level: use 1 (trace) to 6 (fatal)"))
    };
    Ok(LogQuery {
        sandbox_id: String::new(),
        levels: query.all("level").map(level).collect::<Result<_, _>>()?,
        process_ids: query.all("processId").map(str::to_owned).collect(),
        next_token: query.get("nextToken").map(str::to_owned),
        head: query.number("head", 1..=LINES_MAX)?,
        tail: query.number("tail", 1..=LINES_MAX)?,
        body: query.get("body").map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_query_repeats_its_keys() {
        let got = parse(&Query::parse("level=3&level=5&processId=1&processId=2&nextToken=t&tail=3&body=a+b")).unwrap();
        let expected = LogQuery {
            levels: vec![3, 5],
            process_ids: vec!["1".into(), "2".into()],
            next_token: Some("t".into()),
            tail: Some(3),
            body: Some("a b".into()),
            ..LogQuery::default()
        };
        assert_eq!(got, expected);
        for bad in ["level=0", "level=x", "head=0", "tail=x"] {
            assert!(parse(&Query::parse(bad)).is_err(), "{bad}");
        }
    }
}
