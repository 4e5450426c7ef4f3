//! Payloads of journal records.
