//! A certificate for the brokers of a stack with SASL_SSL, made by the JDK's keytool.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::StackError;

/// Protects nothing: the key store lies beside the broker that uses it and serves 127.0.0.1 only.
pub(crate) const STORE_PASSWORD: &str = "weir-local";

/// Where key store and certificate lie.
#[derive(Debug, Clone)]
pub(crate) struct Certificate {
    /// PKCS12, for the brokers.
    pub store: PathBuf,
    /// PEM, for the clients.
    pub pem: PathBuf,
}

/// Makes a self-signed certificate for 127.0.0.1 and localhost, unless the folder has one.
pub(crate) fn certificate(java: &Path, folder: &Path) -> Result<Certificate, StackError> {
    let certificate = Certificate { store: folder.join("broker.p12"), pem: folder.join("ca.pem") };
    if certificate.pem.exists() {
        return Ok(certificate);
    }
    let _ = std::fs::remove_file(&certificate.store);
    let store = certificate.store.display().to_string();
    let common = ["-alias", "broker", "-storetype", "PKCS12", "-storepass", STORE_PASSWORD, "-keystore", &store];
    let key = ["-genkeypair", "-keyalg", "RSA", "-keysize", "2048", "-validity", "3650", "-dname", "CN=127.0.0.1"];
    keytool(java, &[&key[..], &["-ext", "SAN=ip:127.0.0.1,dns:localhost"], &common].concat())?;
    // The PEM is written last: it says that both are there.
    let draft = folder.join("ca.pem.new");
    let file = draft.display().to_string();
    keytool(java, &[&["-exportcert", "-rfc", "-file", &file][..], &common].concat())?;
    std::fs::rename(&draft, &certificate.pem).map_err(StackError::io("move the certificate into place"))?;
    Ok(certificate)
}

fn keytool(java: &Path, args: &[&str]) -> Result<(), StackError> {
    let program = java.parent().map_or_else(|| PathBuf::from("keytool"), |folder| folder.join("keytool"));
    let output = Command::new(&program).args(args).output();
    let output = output.map_err(StackError::io(format!("run {} (part of Java)", program.display())))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        return Err(StackError::Config(format!("keytool could not make a certificate: {said}")));
    }
    Ok(())
}
