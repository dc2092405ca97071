//! A cursor is digits and nothing else, and the header wins. The first line is the header, the rest the query.
#![no_main]

use ai_service::fuzzing::cursor;
use ai_service_fuzz::parts;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((header, query)) = parts(input) else { return };
    let query = std::str::from_utf8(query).ok();
    let found = cursor(header, query);
    let is_visible = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~');
    let header =
        std::str::from_utf8(header).ok().filter(|text| !text.is_empty() && text.bytes().all(|b| is_visible(&b)));
    let text = header.or_else(|| {
        let pairs = query?.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(name, _)| *name == "last_event_id").map(|(_, value)| value).next()
    });
    match found {
        Some(number) => {
            let digits = text.expect("somewhere to read it from");
            assert!(digits.bytes().all(|byte| byte.is_ascii_digit()), "{digits:?}");
            let significant = digits.trim_start_matches('0');
            assert_eq!(if significant.is_empty() { "0" } else { significant }, number.to_string());
        }
        None => assert!(text.is_none_or(|text| text.parse::<u64>().is_err() || text.starts_with('+')), "{text:?}"),
    }
});
