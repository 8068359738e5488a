//! ios
