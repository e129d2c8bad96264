//! A document's products, and which of them are packages of a distribution.

use std::collections::{HashMap, HashSet};
use std::str::FromStr as _;

use packageurl::PackageUrl;
use serde::Deserialize;

use crate::limits::{MAX_NAME, MAX_VERSION};
use crate::platform::Platform;
use crate::reading::{check_text, shown};

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Tree {
    branches: Vec<Branch>,
    full_product_names: Vec<Product>,
    relationships: Vec<Relationship>,
}

#[derive(Deserialize)]
struct Branch {
    #[serde(default)]
    branches: Vec<Branch>,
    #[serde(default)]
    product: Option<Product>,
}

#[derive(Deserialize)]
struct Product {
    product_id: String,
    #[serde(default)]
    product_identification_helper: Option<Helper>,
}

#[derive(Deserialize)]
struct Helper {
    #[serde(default)]
    cpe: Option<String>,
    #[serde(default)]
    purl: Option<String>,
}

#[derive(Deserialize)]
struct Relationship {
    category: String,
    full_product_name: Product,
    product_reference: String,
    relates_to_product_reference: String,
}

/// A package of a distribution's release.
pub(super) struct Component {
    pub(super) platform: Platform,
    pub(super) package: String,
    /// `EPOCH:VERSION-RELEASE`.
    pub(super) version: Option<String>,
    /// Empty where it has none.
    pub(super) arch: String,
}

/// Products by their id: packages of distributions, and why others are none.
pub(super) struct Products<'t>(HashMap<&'t str, Result<Component, &'static str>>);

impl<'t> Products<'t> {
    /// The error says what is wrong with the tree.
    pub(super) fn of(tree: &'t Tree) -> Result<Self, String> {
        let mut plain: HashMap<&str, Option<&Helper>> = HashMap::new();
        let mut insert = |product: &'t Product| match plain
            .insert(&product.product_id, product.product_identification_helper.as_ref())
        {
            None => Ok(()),
            Some(_) => Err(twice(&product.product_id)),
        };
        // Depth is limited by the JSON parser.
        let mut branches: Vec<&Branch> = tree.branches.iter().collect();
        while let Some(branch) = branches.pop() {
            branch.product.iter().try_for_each(&mut insert)?;
            branches.extend(&branch.branches);
        }
        tree.full_product_names.iter().try_for_each(insert)?;
        let related: HashSet<&str> =
            tree.relationships.iter().map(|it| it.full_product_name.product_id.as_str()).collect();
        let mut products = HashMap::new();
        for relationship in &tree.relationships {
            let id = relationship.full_product_name.product_id.as_str();
            for reference in [&relationship.product_reference, &relationship.relates_to_product_reference] {
                if !plain.contains_key(reference.as_str()) && !related.contains(reference.as_str()) {
                    return Err(format!(
                        "product_tree: {} refers to {}, which is not there",
                        shown(id),
                        shown(reference)
                    ));
                }
            }
            let is_twice = plain.contains_key(id) || products.insert(id, component(relationship, &plain)?).is_some();
            if is_twice {
                return Err(twice(id));
            }
        }
        products.extend(plain.into_keys().map(|id| (id, Err("a product that is not part of another"))));
        Ok(Self(products))
    }

    /// The package that a product is, or why it is none; the error says what is wrong with the document.
    pub(super) fn component(&self, id: &str) -> Result<Result<&Component, &'static str>, String> {
        let product = self.0.get(id).ok_or_else(|| missing(id))?;
        Ok(product.as_ref().map_err(|why| *why))
    }

    /// Whether it is there.
    pub(super) fn check(&self, id: &str) -> Result<(), String> {
        self.0.contains_key(id).then_some(()).ok_or_else(|| missing(id))
    }
}

fn twice(id: &str) -> String {
    format!("product_tree: product_id {} is there twice", shown(id))
}

fn missing(id: &str) -> String {
    format!("{} is no product of product_tree", shown(id))
}

/// Why a relationship is no package of a distribution is one of few texts, which are counted.
fn component(
    relationship: &Relationship,
    plain: &HashMap<&str, Option<&Helper>>,
) -> Result<Result<Component, &'static str>, String> {
    if relationship.category != "default_component_of" {
        return Ok(Err("a relationship other than default_component_of"));
    }
    let Some(product) = plain.get(relationship.relates_to_product_reference.as_str()) else {
        return Ok(Err("a package of a module stream, which devices do not tell"));
    };
    let Some(package) = plain.get(relationship.product_reference.as_str()) else {
        return Ok(Err("a package that is itself a relationship"));
    };
    let Some(platform) = product.and_then(|it| it.cpe.as_deref()).and_then(Platform::of_cpe) else {
        return Ok(Err("a product that is none of the distributions"));
    };
    let Some(text) = package.and_then(|it| it.purl.as_deref()) else {
        return Ok(Err("a package without a package URL"));
    };
    let purl = PackageUrl::from_str(text).map_err(|error| format!("product_tree: purl {}: {error}", shown(text)))?;
    let purl = Purl::from(purl);
    if purl.kind != "rpm" {
        return Ok(Err("something other than an RPM package"));
    }
    if purl.is_modular {
        return Ok(Err("a package of a module stream, which devices do not tell"));
    }
    check_text("product_tree: name of a purl", &purl.name, MAX_NAME)?;
    if purl.version.as_ref().is_some_and(|it| it.len() > MAX_VERSION) {
        return Err(format!("product_tree: purl {}: its version has more than {MAX_VERSION} bytes", shown(text)));
    }
    let Purl { name, version, epoch, arch, .. } = purl;
    // Without a qualifier `epoch` it is 0 (purl-spec, rpm).
    let version = version.map(|version| match epoch {
        Some(epoch) => format!("{epoch}:{version}"),
        None => version,
    });
    Ok(Ok(Component { platform, package: name, version, arch: arch.unwrap_or_default() }))
}

/// What is asked of a package URL.
struct Purl {
    kind: String,
    name: String,
    version: Option<String>,
    epoch: Option<String>,
    arch: Option<String>,
    is_modular: bool,
}

impl From<PackageUrl<'_>> for Purl {
    fn from(purl: PackageUrl<'_>) -> Self {
        let qualifier = |name: &str| purl.qualifiers().get(name).map(ToString::to_string);
        Self {
            kind: purl.ty().to_owned(),
            name: purl.name().to_owned(),
            version: purl.version().map(str::to_owned),
            epoch: qualifier("epoch"),
            arch: qualifier("arch"),
            is_modular: qualifier("rpmmod").is_some(),
        }
    }
}
