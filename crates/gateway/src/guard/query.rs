//! The query string, decoded the way s3s decodes it: as a form. `%53ignature` is `Signature`.

use percent_encoding::percent_decode;

/// Names and values in their order.
#[derive(Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes a query string; nothing is malformed to a form's decoder.
    pub fn parse(text: &str) -> Query {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Query(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(k, v)| (form(k), form(v)))
                .collect(),
        )
    }
    /// Whether a name is there, with or without a value.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(k, _)| k == name)
    }
    /// The value of a name that is there once.
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut values = self.0.iter().filter(|(k, _)| k == name).map(|(_, v)| v.as_str());
        values.next().filter(|_| values.next().is_none())
    }
    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(k, _)| k.as_str())
    }
    /// How often a name is there, in any case.
    pub fn count_ignoring_case(&self, name: &str) -> usize {
        self.0.iter().filter(|(k, _)| k.eq_ignore_ascii_case(name)).count()
    }
}

fn form(text: &str) -> String {
    let plain = text.replace('+', " ");
    percent_decode(plain.as_bytes()).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::Query;

    #[test]
    fn names_are_compared_after_decoding() {
        let query = Query::parse("%53ignature=a%2Bb&x=1+2&&flag&y=1&y=2");
        assert_eq!(query.get("Signature"), Some("a+b"));
        assert_eq!(query.get("x"), Some("1 2"));
        assert!(query.has("flag") && query.has("y"));
        assert_eq!(query.get("y"), None, "twice is not once");
    }
}
