//! The access of the fuzz targets to the transport. It is not in a build for use.

use super::{
    mime,
    splice::{Material, Secrets},
};
use angarium_domain::transmission::{Blob, Fault, Mail};

/// A mail as it would leave.
pub fn write_mail(mail: &Mail, blobs: &[Blob]) -> Result<Vec<u8>, Fault> {
    mime::write(mail, Material { secrets: &Secrets::default(), blobs })
}
