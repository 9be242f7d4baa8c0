//! What a registry answers to whom it does not know: `WWW-Authenticate`, as far as registries use it. Pure.

/// How to say who asks.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// With a name and a password, to the registry itself.
    Basic,
    /// With a token that somebody else hands out.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// Of the header's values; a token is preferred, since it is worth less to a thief.
    pub(super) fn parse<'a>(values: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut basic = None;
        for value in values {
            let (scheme, rest) = value.trim().split_once(' ').unwrap_or((value.trim(), ""));
            if scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Self::Basic);
            }
            if scheme.eq_ignore_ascii_case("bearer") {
                let mut parameters = parameters(rest);
                let mut take = |name: &str| {
                    let at = parameters.iter().position(|(known, _)| known.eq_ignore_ascii_case(name))?;
                    Some(parameters.swap_remove(at).1)
                };
                if let Some(realm) = take("realm") {
                    return Some(Self::Bearer { realm, service: take("service"), scope: take("scope") });
                }
            }
        }
        basic
    }
}

/// `name="value",name=value`; a backslash stands before a quote that is meant.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text.chars().peekable();
    loop {
        let name: String = std::iter::from_fn(|| rest.next_if(|&c| c != '=')).collect();
        if rest.next().is_none() {
            return found;
        }
        let mut value = String::new();
        if rest.next_if_eq(&'"').is_some() {
            while let Some(c) = rest.next() {
                match c {
                    '"' => break,
                    '\\' => value.extend(rest.next()),
                    c => value.push(c),
                }
            }
        } else {
            value.extend(std::iter::from_fn(|| rest.next_if(|&c| c != ',')));
        }
        while rest.next_if(|&c| c == ',' || c == ' ').is_some() {}
        found.push((name.trim().to_owned(), value.trim().to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(values: &[&str], expect: Option<(&str, Option<&str>)>) {
        let got = match Challenge::parse(values.iter().copied()) {
            Some(Challenge::Bearer { realm, service, .. }) => Some((realm, service)),
            Some(Challenge::Basic) => Some(("basic".to_owned(), None)),
            None => None,
        };
        assert_eq!(got, expect.map(|(realm, service)| (realm.to_owned(), service.map(str::to_owned))), "{values:?}");
    }

    #[test]
    fn challenges() {
        check(&[], None);
        check(&["Negotiate"], None);
        check(&["Basic realm=\"x\""], Some(("basic", None)));
        check(&["Bearer"], None);
        check(
            &["Bearer realm=\"https://a.example/t?x=1,2\",service=\"r\",scope=\"repository:a:pull\""],
            Some(("https://a.example/t?x=1,2", Some("r"))),
        );
        check(&["bearer service=r , realm=\"h\\\"i\""], Some(("h\"i", Some("r"))));
        check(&["Basic realm=\"x\"", "Bearer realm=\"t\""], Some(("t", None)));
    }
}
