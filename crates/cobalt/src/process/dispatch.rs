//! One server, two services: a request goes to the I/O service or to the catalogue by its number.

use cobalt_cas::CasService;
use cobalt_ios::Ios;
use cobalt_rpc::{Call, Refusal, Service};
use futures::future::LocalBoxFuture;
use std::rc::Rc;

/// What a process answers.
pub struct Dispatch {
    pub ios: Rc<Ios>,
    /// In the process that holds the catalogue.
    pub cas: Option<Rc<CasService>>,
}

impl Service for Dispatch {
    fn call(self: Rc<Self>, call: Call) -> LocalBoxFuture<'static, ()> {
        let opcode = call.opcode();
        if Ios::serves(opcode) {
            return self.ios.clone().call(call);
        }
        match &self.cas {
            Some(cas) if CasService::serves(opcode) => cas.clone().call(call),
            _ => {
                call.refuse(Refusal::UnknownOpcode(opcode));
                Box::pin(std::future::ready(()))
            }
        }
    }
}
