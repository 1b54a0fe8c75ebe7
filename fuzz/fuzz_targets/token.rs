//! A token as a person types it: any text gives a token or an error; what is a token is written in one
//! way, and reads back from that.
#![no_main]

use libfuzzer_sys::fuzz_target;
use undercroft_format::trust::token::Token;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(token) = text.parse::<Token>() {
        let written = token.to_text();
        assert_eq!(written.len(), 92);
        assert_eq!(written.parse(), Ok(token));
        assert!(text.len() <= 512);
    }
});
