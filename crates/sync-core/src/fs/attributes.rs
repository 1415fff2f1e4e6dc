//! Owner, mode, xattrs and times of an inode, through descriptors only.
