//! Names of hosts are looked up once, and connections go to what was found then.

use std::io;
use std::net::SocketAddr;

use futures::FutureExt;
use futures::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Finds the addresses of a host.
pub(super) trait Lookup: std::fmt::Debug + Send + Sync {
    /// All addresses of this name.
    fn lookup(&self, host: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>>;
}

/// As the machine is set up to.
#[derive(Debug, Clone, Copy)]
pub(super) struct System;

impl Lookup for System {
    fn lookup(&self, host: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) }.boxed()
    }
}

/// Answers with the addresses that were checked, whatever is asked: a client that has no other resolver can't be led
/// elsewhere by a name that changes its address between the check and the connection (DNS rebinding).
#[derive(Debug, Clone)]
pub(super) struct Checked(pub(super) Vec<SocketAddr>);

impl Resolve for Checked {
    fn resolve(&self, _: Name) -> Resolving {
        let addresses: Addrs = Box::new(self.0.clone().into_iter());
        async move { Ok(addresses) }.boxed()
    }
}
