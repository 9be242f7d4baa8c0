//! The control plane, continued: images.

use belljar_api::image::{ImageFromSnapshot, ImageInfo, ImageList};
use http::Method;

use crate::{
    Client, Error,
    transport::{Call, Plane, query_value, segment},
};

const IMAGES: &str = "/images/v4/images";

impl Client {
    /// Every image that a sandbox can be made of, by name.
    pub async fn images(&self) -> Result<Vec<ImageInfo>, Error> {
        let (mut all, mut path) = (Vec::new(), IMAGES.to_owned());
        loop {
            let page: ImageList = self.transport.json(Call::new(Plane::Control, Method::GET, path)).await?;
            all.extend(page.items);
            match page.pagination.next {
                Some(cursor) => path = format!("{IMAGES}?cursor={}", query_value(&cursor)),
                None => return Ok(all),
            }
        }
    }

    /// The image with this name.
    pub async fn image(&self, name: &str) -> Result<ImageInfo, Error> {
        self.transport.json(Call::new(Plane::Control, Method::GET, image_path(name))).await
    }

    /// Makes an image of a completed filesystem snapshot, which it needs no longer then.
    pub async fn image_from_snapshot(&self, new: &ImageFromSnapshot) -> Result<ImageInfo, Error> {
        let path = format!("{IMAGES}/from-snapshot");
        self.transport.json(Call::new(Plane::Control, Method::POST, path).json(new)?).await
    }

    /// Removes a name, and its image when no other name stands for that. Sandboxes keep what they have.
    pub async fn delete_image(&self, name: &str) -> Result<(), Error> {
        self.transport.nothing(Call::new(Plane::Control, Method::DELETE, image_path(name))).await
    }
}

/// Slashes stay as they are.
fn image_path(name: &str) -> String {
    let parts: Vec<String> = name.split('/').map(segment).collect();
    format!("{IMAGES}/name/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_slashes_and_nothing_else() {
        assert_eq!(image_path("team/tool"), "/images/v4/images/name/team/tool");
        assert_eq!(image_path("a b/../c?"), "/images/v4/images/name/a%20b/%2E%2E/c%3F");
    }
}
