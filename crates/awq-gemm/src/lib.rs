//! INT4 AWQ weights: formats, packing and its inverse, the W4A8 and W4A16 products
