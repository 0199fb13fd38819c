//! Names as kine reads them.

use rusqlite::types::ValueRef;

/// kine's own rows, which are no data: the compacted revision (`sqllog/sql.go`, `compactStart`), and the API server's
/// key `compact_rev_key` under another name (`server/compact.go`), which it writes anew. Gap rows (`gap-<id>`,
/// `generic.go`, `Fill`) are tombstones and need no rule; a live key whose name begins so is served by kine and kept.
pub fn is_bookkeeping(name: &[u8]) -> bool {
    name == b"compact_rev_key" || name == b"compact_rev_key_apiserver"
}

/// The key that a name stored as a number means: what Go's `database/sql` makes of it when kine reads it as a string
/// (`convertAssign`: `strconv.FormatInt(i, 10)`, `strconv.FormatFloat(f, 'g', -1, 64)`). `None` for other types.
pub fn text_of_number(value: ValueRef<'_>) -> Option<Vec<u8>> {
    match value {
        ValueRef::Integer(i) => Some(i.to_string().into_bytes()),
        ValueRef::Real(f) => Some(go_g(f).into_bytes()),
        ValueRef::Null | ValueRef::Text(_) | ValueRef::Blob(_) => None,
    }
}

/// Go's `strconv.FormatFloat(f, 'g', -1, 64)`: the shortest digits that read back as `f`, with an exponent of at least
/// two digits below 1e-4 and from 1e6 on (`strconv/ftoa.go`).
fn go_g(f: f64) -> String {
    if !f.is_finite() {
        return if f.is_nan() {
            "NaN"
        } else if f > 0.0 {
            "+Inf"
        } else {
            "-Inf"
        }
        .to_owned();
    }
    let scientific = format!("{f:e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..6).contains(&exponent) {
        return format!("{f}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kines_own_two_names_are_bookkeeping() {
        for (name, own) in [
            ("compact_rev_key", true),
            ("compact_rev_key_apiserver", true),
            ("/compact_rev_key", false),
            ("compact_rev_key2", false),
            ("gap-7", false),
            ("gap-x", false),
        ] {
            assert_eq!(is_bookkeeping(name.as_bytes()), own, "{name}");
        }
    }

    #[test]
    fn numbers_read_as_go_prints_them() {
        for (value, text) in [
            (ValueRef::Integer(-7), "-7"),
            (ValueRef::Real(1.5), "1.5"),
            (ValueRef::Real(9_223_372_036_854_775_808.0), "9.223372036854776e+18"),
            (ValueRef::Real(1e21), "1e+21"),
            (ValueRef::Real(-2.5e-7), "-2.5e-07"),
            (ValueRef::Real(0.0001), "0.0001"),
            (ValueRef::Real(123_456.5), "123456.5"),
            (ValueRef::Real(1_234_567.5), "1.2345675e+06"),
            (ValueRef::Real(f64::INFINITY), "+Inf"),
        ] {
            assert_eq!(String::from_utf8(text_of_number(value).unwrap()).unwrap(), text);
        }
        assert_eq!(text_of_number(ValueRef::Blob(b"7")), None);
    }
}
