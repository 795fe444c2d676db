use proptest::prelude::*;

use super::*;

fn read(text: &str) -> Result<Value<'_>, JsonError> {
    parse(text.as_bytes(), &Limits::default())
}

fn problem(bytes: impl AsRef<[u8]>) -> Problem {
    match parse(bytes.as_ref(), &Limits { bytes: 4096, depth: 8, values: 64 }) {
        Ok(value) => panic!("{} was read as {value:?}", String::from_utf8_lossy(bytes.as_ref())),
        Err(error) => error.problem,
    }
}

#[test]
fn what_is_plain_is_read() {
    let value = read(r#" {"a":[1,-2.5e3,true,false,null,"x\u00e9\ud83d\ude00\n\/"],"b":{}} "#).unwrap();
    assert_eq!(value.get("a").unwrap().as_list().unwrap().len(), 6);
    assert_eq!(value.get("a").unwrap().as_list().unwrap()[5].as_str(), Some("xé😀\n/"));
    assert_eq!(value.to_bytes(), r#"{"a":[1,-2.5e3,true,false,null,"xé😀\n/"],"b":{}}"#.as_bytes());
    for plain in ["0", "-0", "\"\"", "[]", "[[]]", "null", "9223372036854775807", "-9223372036854775808", "1E+2"] {
        assert!(read(plain).is_ok(), "{plain}");
    }
}

#[test]
fn what_two_readers_read_differently_is_refused() {
    for (text, want) in [
        (r#"{"a":1,"a":2}"#, Problem::DuplicateKey),
        (r#"{"a":1,"\u0061":2}"#, Problem::DuplicateKey),
        (r#"[{"x":{"a":1,"b":2,"a":3}}]"#, Problem::DuplicateKey),
        (r#"{"1":1,"2":1,"3":1,"4":1,"5":1,"6":1,"7":1,"8":1,"9":1,"1":1}"#, Problem::DuplicateKey),
        ("\u{feff}{}", Problem::Bom),
        ("", Problem::Empty),
        (" \n", Problem::Empty),
        ("{} x", Problem::Trailing),
        ("{}{}", Problem::Trailing),
        ("1 2", Problem::Trailing),
        ("{}// x", Problem::Comment),
        ("/* x */{}", Problem::Comment),
        ("[1, # x\n2]", Problem::Comment),
        (
            r#"{"a":1,//x
"b":2}"#,
            Problem::Comment,
        ),
        ("NaN", Problem::NotANumber),
        ("[Infinity]", Problem::NotANumber),
        ("[-Infinity]", Problem::NotANumber),
        (r#""\ud800""#, Problem::LoneSurrogate),
        (r#""\ud800x""#, Problem::LoneSurrogate),
        (r#""\ud800\n""#, Problem::LoneSurrogate),
        (r#""\ud800\ud800""#, Problem::LoneSurrogate),
        (r#""\udc00""#, Problem::LoneSurrogate),
        (r#"{"a\u0000":1}"#, Problem::NulInKey),
        ("\"a\u{0}\"", Problem::Control),
        ("\"a\nb\"", Problem::Control),
        (r#""\x41""#, Problem::Escape),
        (r#""\u00g0""#, Problem::Escape),
        (r#""\u+041""#, Problem::Escape),
        ("01", Problem::Number),
        ("+1", Problem::Number),
        (".5", Problem::Number),
        ("5.", Problem::Truncated),
        ("[5.]", Problem::Number),
        ("[1e]", Problem::Number),
        ("0x10", Problem::Number),
        ("1_000", Problem::Number),
        ("-", Problem::Truncated),
        ("[-a]", Problem::Number),
        ("9223372036854775808", Problem::NumberRange),
        ("1e400", Problem::NumberRange),
        ("-1e400", Problem::NumberRange),
        ("[1,]", Problem::Syntax),
        ("{\"a\":1,}", Problem::Syntax),
        ("{a:1}", Problem::Syntax),
        ("{'a':1}", Problem::Syntax),
        ("[1 2]", Problem::Syntax),
        ("True", Problem::Syntax),
        ("nul", Problem::Truncated),
        ("[", Problem::Truncated),
        ("{\"a\"", Problem::Truncated),
        ("\"abc", Problem::Truncated),
        ("\"abc\\", Problem::Truncated),
        ("\"\\u12", Problem::Truncated),
        ("[[[[[[[[[1]]]]]]]]]", Problem::Depth),
    ] {
        assert_eq!(problem(text), want, "{text}");
    }
    assert_eq!(problem(b"\xff\xfe{\x00}\x00"), Problem::Encoding);
    assert_eq!(problem(b"{\x00}\x00"), Problem::Encoding);
    assert_eq!(problem(b"\x00\x00\x00{"), Problem::Encoding);
    assert_eq!(problem(b"\"\xff\""), Problem::Utf8);
    assert_eq!(problem(b"\"\xc0\xaf\""), Problem::Utf8);
    assert_eq!(problem(b"\"\xed\xa0\x80\""), Problem::Utf8);
    assert_eq!(problem(format!("0.{}", "0".repeat(80))), Problem::NumberRange);
    assert_eq!(problem(vec![b' '; 5000]), Problem::TooLarge);
    assert_eq!(problem(format!("[{}1]", "1,".repeat(64))), Problem::TooManyValues);
}

#[test]
fn an_error_says_what_and_where() {
    let error = read(r#"{"a": 01}"#).unwrap_err();
    assert_eq!(error.to_string(), "a number is malformed, at byte 7");
    assert_eq!(error.code(), "json_number");
}

#[test]
fn numbers_are_integers_where_readers_take_them_for_such() {
    for (text, want) in [
        ("10", Some(10)),
        ("10.0", Some(10)),
        ("1e1", Some(10)),
        ("0.1e2", Some(10)),
        ("-1", None),
        ("-0", Some(0)),
        ("-0.0", Some(0)),
        ("0.5", None),
        ("1e300", None),
        ("9007199254740993", Some(9_007_199_254_740_993)),
    ] {
        assert_eq!(read(text).unwrap().as_u64(), want, "{text}");
    }
    assert_eq!(read("\"10\"").unwrap().as_u64(), None);
}

/// Vectors: RFC 8785 §3.2.2 and its appendix B.
#[test]
fn the_canonical_form_is_that_of_rfc_8785() {
    let given = r#"{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],
        "string":"\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/","literals":[null,true,false]}"#;
    let want = "{\"literals\":[null,true,false],\"numbers\":[333333333.3333333,1e+30,4.5,0.002,1e-27],\
        \"string\":\"€$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"}";
    assert_eq!(String::from_utf8(read(given).unwrap().canonical()).unwrap(), want);
    let sorted = r#"{"\u20ac":1,"\r":2,"\ufb33":3,"1":4,"\ud83d\ude00":5,"\u0080":6,"\u00f6":7}"#;
    let want = "{\"\\r\":2,\"1\":4,\"\u{80}\":6,\"ö\":7,\"€\":1,\"😀\":5,\"\u{fb33}\":3}";
    assert_eq!(String::from_utf8(read(sorted).unwrap().canonical()).unwrap(), want);
    for (given, want) in [
        ("-0", "0"),
        ("-0.0", "0"),
        ("1.0", "1"),
        ("1e21", "1e+21"),
        ("1.5e20", "150000000000000000000"),
        ("9.999999999999997e22", "9.999999999999997e+22"),
        ("295147905179352830000.0", "295147905179352830000"),
        ("0.000001", "0.000001"),
        ("1e-7", "1e-7"),
        ("5e-324", "5e-324"),
        ("-1.7976931348623157e308", "-1.7976931348623157e+308"),
        ("123.456", "123.456"),
        ("9007199254740993", "9007199254740993"),
    ] {
        assert_eq!(String::from_utf8(read(given).unwrap().canonical()).unwrap(), want, "{given}");
    }
}

#[test]
fn values_can_be_changed() {
    let mut value = read(r#"{"b":1, "a":{"x":1.50}, "n":null}"#).unwrap();
    assert!(value.set(&["b"], Value::count(2)));
    assert!(value.set(&["a", "y", "z"], Value::Bool(true)));
    assert!(value.set(&["n", "m"], "t".into()));
    assert!(!value.set(&["b", "x"], Value::Null));
    assert_eq!(value.remove(&["a", "nothing"]), None);
    assert_eq!(String::from_utf8(value.to_bytes()).unwrap(), r#"{"b":2,"a":{"x":1.50,"y":{"z":true}},"n":{"m":"t"}}"#);
    assert_eq!(value.remove(&["a", "x"]).unwrap().to_bytes(), b"1.50");
    assert_eq!(value.at(&["a", "y", "z"]).and_then(Value::as_bool), Some(true));
}

#[test]
fn keys_that_go_takes_for_others_are_found() {
    let known = ["model", "max_tokens", "stream"];
    for (text, want) in [
        (r#"{"model":1,"Model":2}"#, Some("Model")),
        (r#"{"MAX_TOKENS":1}"#, Some("MAX_TOKENS")),
        (r#"{"\u017ftream":1}"#, Some("ſtream")),
        (r#"{"max_to\u212Aens":1}"#, Some("max_to\u{212a}ens")),
        (r#"{"model":1,"max_token":2,"modèl":3}"#, None),
    ] {
        assert_eq!(read(text).unwrap().as_object().unwrap().misspelt(&known), want, "{text}");
    }
}

/// Values as another reader would make them.
fn any_value() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_filter_map("finite", |f| serde_json::Number::from_f64(f).map(Into::into)),
        "\\PC{0,12}".prop_map(Into::into),
        ".{0,6}".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..12).prop_map(Into::into),
            prop::collection::btree_map("[a-zé\"\\\\]{0,4}", inner, 0..12)
                .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn what_another_writes_is_read_the_same(value in any_value()) {
        for text in [serde_json::to_string(&value).unwrap(), serde_json::to_string_pretty(&value).unwrap()] {
            let ours = read(&text).unwrap();
            for bytes in [ours.to_bytes(), ours.canonical()] {
                let again: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
                prop_assert!(alike(&again, &value), "{} became {}", text, String::from_utf8_lossy(&bytes));
            }
        }
    }

    #[test]
    fn what_is_read_another_reads_the_same(text in "[\\[\\]{}:,\"\\\\ua0-9eE.+ tfn-]{0,24}") {
        if let Ok(ours) = read(&text) {
            let theirs: serde_json::Value = serde_json::from_str(&text).unwrap();
            let again: serde_json::Value = serde_json::from_slice(&ours.to_bytes()).unwrap();
            prop_assert_eq!(again, theirs);
        }
    }

    #[test]
    fn no_bytes_make_it_panic_and_forms_are_stable(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(value) = parse(&bytes, &Limits::default()) {
            let written = value.to_bytes();
            let again = parse(&written, &Limits::default()).unwrap();
            prop_assert_eq!(again.digest(), value.digest());
            prop_assert_eq!(again, value);
        }
    }

    #[test]
    fn order_and_space_do_not_change_the_digest(members in prop::collection::btree_map("[a-z]{1,3}", any::<i64>(), 0..12)) {
        let object = |members: Vec<(String, i64)>| {
            Value::object(members.into_iter().map(|(key, number)| (key, Value::integer(number)))).digest()
        };
        let forward: Vec<_> = members.into_iter().collect();
        let mut backward = forward.clone();
        backward.reverse();
        prop_assert_eq!(object(forward), object(backward));
    }
}

/// Whether two values are equal, but for the last bit of numbers: the other reader is not exact.
fn alike(a: &serde_json::Value, b: &serde_json::Value) -> bool {
    use serde_json::Value as V;
    match (a, b) {
        (V::Number(a), V::Number(b)) if a.is_i64() && b.is_i64() => a == b,
        (V::Number(a), V::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            (a - b).abs() <= b.abs() * f64::EPSILON * 2.0 + f64::MIN_POSITIVE
        }
        (V::Array(a), V::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(a, b)),
        (V::Object(a), V::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| alike(a, b)))
        }
        (a, b) => a == b,
    }
}
