//! Paged KV cache: block allocator (host) and page pools with their append
