//! Any text as filter, page token and sort order: understood, or refused with code 3.
#![no_main]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kfp_apiserver::store::filter::Generation;
use kfp_apiserver::store::list::{Listable, Options, Request};
use kfp_apiserver::store::{experiments, jobs, pipelines, runs, tasks, versions};
use libfuzzer_sys::fuzz_target;

static LISTS: [&Listable; 6] = [
    &runs::LISTABLE,
    &jobs::LISTABLE,
    &pipelines::LISTABLE,
    &versions::LISTABLE,
    &experiments::LISTABLE,
    &tasks::LISTABLE,
];

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let mut fields = text.split('\n');
    let mut next = || fields.next().unwrap_or_default();
    let (filter, sort_by, token) = (next(), next(), next());
    let listable = LISTS[usize::from(*choice) % LISTS.len()];
    let generation = if choice & 0x40 == 0 { Generation::V1 } else { Generation::V2 };
    // Inside of base64, so that the document is reached.
    let token = if choice & 0x80 == 0 { token.to_owned() } else { STANDARD.encode(token) };
    let request = Request { token: &token, size: i32::from(*choice), sort_by, filter, generation };
    if let Err(error) = Options::parse(request, listable) {
        assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error}");
    }
});
