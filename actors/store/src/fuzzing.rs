//! What the fuzz targets read that no other code outside this crate may.

use std::path::Path;

use crate::{
    log::{directory, watermark},
    snapshot::file,
};

/// A watermark file of these bytes; and one whose pages begin with them and are sealed.
pub fn watermark(bytes: &[u8]) {
    watermark::check(bytes);
    watermark::check(&watermark::sealed(bytes));
}

/// A `node` file of these bytes; and the same with the checksum that it would need.
pub fn node_file(bytes: &[u8]) {
    let dir = Path::new("fuzz");
    let _ = directory::parse_node(dir, bytes.to_vec()).map_err(|error| error.to_string());
    let body = &bytes[..bytes.len().min(4096)];
    let sealed = [body, format!("checksum {:08x}\n", crc32fast::hash(body)).as_bytes()].concat();
    let _ = directory::parse_node(dir, sealed).map_err(|error| error.to_string());
}

/// A snapshot's file of this header and these chunks, with the checksums and the hash that they would need.
pub fn snapshot_file(header: &[u8], chunks: &[(u32, &[u8])], counts: Option<(u64, u64)>) -> Vec<u8> {
    file::sealed(header, chunks, counts)
}
