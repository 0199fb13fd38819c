//! etcd's data dir: its file formats, and what we may do to one.
