//! A broker whose clients come through the proxy.

use weir_stack::{Ports, free_ports};

use crate::{Broker, BrokerProxy};

impl BrokerProxy {
    /// A broker with a second listener that is advertised as this proxy; and the proxy's address.
    pub fn broker(&self) -> (Broker, String) {
        let ports = free_ports(3).expect("free ports");
        let base = consecutive_ports();
        let proxied = ports[0];
        let broker = Broker::start(|mut config| {
            config.ports = Ports::Fixed { kafka: base, registry: ports[1], qdrant: ports[2] };
            let own = format!("CLIENT://127.0.0.1:{base},CONTROLLER://127.0.0.1:{}", base + 1);
            let advertised = format!("CLIENT://127.0.0.1:{base},PROXIED://127.0.0.1:{}", self.port());
            let properties = [
                ("listeners", format!("{own},PROXIED://127.0.0.1:{proxied}")),
                ("advertised.listeners", advertised),
                ("listener.security.protocol.map", "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT".into()),
            ];
            config.broker_properties.extend(properties.map(|(key, value)| (key.to_owned(), value)));
            config
        });
        self.forward_to(&format!("127.0.0.1:{proxied}"));
        (broker, format!("127.0.0.1:{}", self.port()))
    }
}

fn consecutive_ports() -> u16 {
    loop {
        let port = free_ports(1).expect("a free port")[0];
        if port < u16::MAX && std::net::TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
            return port;
        }
    }
}
