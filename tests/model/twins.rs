//! Records of one pod as they would be of another.

use super::records::Records;
use super::state::{Id, SANDBOXES};

impl Records {
    /// The claim with two pods' names changed.
    pub fn twin_claim(&self, id: Id, twins: (u8, u8)) -> Id {
        if id == 0 {
            return 0;
        }
        if let Some(known) = self.kept.borrow().twin_claims.get(&id) {
            return *known;
        }
        let text = serde_json::to_string(&self.claim(id).unwrap()).unwrap();
        let twin = self.keep_claim(serde_json::from_str(&self.renamed(&text, twins)).unwrap());
        self.kept.borrow_mut().twin_claims.insert(id, twin);
        twin
    }

    /// The block with two pods' names changed in its entries. Whose node's it is makes no difference here: all pods may
    /// borrow from it.
    pub fn twin_block(&self, id: Id, twins: (u8, u8)) -> Id {
        if let Some(known) = self.kept.borrow().twin_blocks.get(&id) {
            return *known;
        }
        let mut block = self.block(id);
        let text = serde_json::to_string(&block.attributes).unwrap();
        block.attributes = serde_json::from_str(&self.renamed(&text, twins)).unwrap();
        let twin = self.keep_block(block);
        self.kept.borrow_mut().twin_blocks.insert(id, twin);
        twin
    }

    /// JSON with all names that come of a pod's number given to the other pod: its own, its node's, its containers', and
    /// its owner's if that is another one.
    fn renamed(&self, text: &str, (one, other): (u8, u8)) -> String {
        let mut names: Vec<(String, String)> = Vec::new();
        for prefix in ["pod", "uid", "node", "node-uid"] {
            names.push((format!("\"{prefix}{one}\""), format!("\"{prefix}{other}\"")));
        }
        let sandboxes = SANDBOXES as u8;
        for (one, other) in (0..sandboxes).map(|n| (one * sandboxes + n, other * sandboxes + n)) {
            names.push((format!("\"c{one}\""), format!("\"c{other}\"")));
            names.push((format!("\"net.c{one}\""), format!("\"net.c{other}\"")));
        }
        if let (Some(one), Some(other)) = (self.owners[usize::from(one)], self.owners[usize::from(other)]) {
            names.push((format!("\"app{one}\""), format!("\"app{other}\"")));
        }
        names.iter().fold(text.to_owned(), |text, (one, other)| {
            text.replace(one.as_str(), "\u{1}").replace(other.as_str(), one).replace('\u{1}', other)
        })
    }
}
