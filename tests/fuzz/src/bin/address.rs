//! A text, as the address of Envoy's admin interface and of the public port.
#![no_main]

use std::os::unix::net::SocketAddr;

use envoy_shutdown_manager::cli::address::{AdminAddress, ServeAt};
use envoy_shutdown_manager_fuzz::{text, within};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some(text) = text(input) else { return };
    if let Ok(address) = within(text.len(), || AdminAddress::parse(text)) {
        let written = within(32 + 4 * text.len(), || address.to_string());
        assert_eq!(AdminAddress::parse(&written).as_ref(), Ok(&address), "written as {written}");
        match address {
            AdminAddress::Unix(path) => {
                assert!(!path.as_os_str().is_empty() && SocketAddr::from_pathname(path).is_ok());
            }
            AdminAddress::Abstract(name) => assert!(!name.is_empty()),
            AdminAddress::Tcp(host, port) => assert!(!host.is_empty() && port > 0),
        }
    }
    if let Ok(ip) = within(0, || ServeAt::parse(text)) {
        assert_eq!(ServeAt::parse(&ip.to_string()), Ok(ip));
        assert_eq!(ServeAt::parse(&format!("[{ip}]")), Ok(ip));
    }
});
