//! Reads a component without compiling it: is it well-formed, what does it import and export,
//! how large are its functions. Compiling hostile code costs more than reading it, so this comes
//! first.

use wasmparser::{Encoding, Parser, Payload, Validator};
use wasmtime::Engine;

use super::{CallLimits, admission::AdmissionError, sandbox, v1};

/// The imports and exports of a component.
#[derive(Debug, Default)]
pub(super) struct Border {
    pub(super) imports: Vec<String>,
    pub(super) exports: Vec<String>,
}

/// Checks all that can be checked without compiling.
pub(super) fn inspect(bytes: &[u8], limits: &CallLimits) -> Result<Border, AdmissionError> {
    if bytes.len() > limits.component {
        return Err(AdmissionError::TooLarge { size: bytes.len(), most: limits.component });
    }
    is_component(bytes)?;
    Validator::new_with_features(sandbox::FEATURES).validate_all(bytes).map_err(malformed)?;
    let border = survey(bytes, limits)?;
    check_imports(&border)?;
    check_exports(&border)?;
    Ok(border)
}

/// Distinguishes the wrong kinds of file, so that the answer names the given one.
fn is_component(bytes: &[u8]) -> Result<(), AdmissionError> {
    if Engine::detect_precompiled(bytes).is_some() || bytes.starts_with(b"\x7fELF") {
        return Err(AdmissionError::Precompiled);
    }
    if Parser::is_core_wasm(bytes) {
        return Err(AdmissionError::NotAComponent("it is a core module; wrap it with `wasm-tools component new`"));
    }
    if !Parser::is_component(bytes) {
        return Err(AdmissionError::NotAComponent("it is not WebAssembly"));
    }
    Ok(())
}

fn malformed(error: wasmparser::BinaryReaderError) -> AdmissionError {
    AdmissionError::Malformed(format!("{} at byte {}", error.message(), error.offset()))
}

/// Walks the whole file, nested modules included; only the outermost border counts.
fn survey(bytes: &[u8], limits: &CallLimits) -> Result<Border, AdmissionError> {
    let mut border = Border::default();
    let (mut depth, mut functions) = (0_u32, 0_u32);
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(malformed)? {
            Payload::Version { encoding: Encoding::Module | Encoding::Component, range, .. } if range.start > 0 => {
                depth += 1;
            }
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    border.imports.push(import.map_err(malformed)?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    border.exports.push(export.map_err(malformed)?.name.name.to_owned());
                }
            }
            Payload::CodeSectionEntry(body) => {
                functions += 1;
                check_code(functions, body.range().len(), limits)?;
            }
            _ => {}
        }
    }
    Ok(border)
}

fn check_code(functions: u32, body: usize, limits: &CallLimits) -> Result<(), AdmissionError> {
    if functions > limits.functions {
        return Err(AdmissionError::TooComplex(format!("more than {} functions", limits.functions)));
    }
    if body > limits.function_body as usize {
        let most = limits.function_body;
        return Err(AdmissionError::TooComplex(format!("a function of {body} bytes, {most} are allowed")));
    }
    Ok(())
}

fn check_imports(border: &Border) -> Result<(), AdmissionError> {
    let foreign: Vec<String> = border.imports.iter().filter(|name| *name != v1::LOG).cloned().collect();
    if foreign.is_empty() { Ok(()) } else { Err(AdmissionError::Imports(foreign)) }
}

fn check_exports(border: &Border) -> Result<(), AdmissionError> {
    if border.exports.iter().any(|name| name == v1::PLUGIN) {
        return Ok(());
    }
    Err(AdmissionError::MissingExport { found: border.exports.clone() })
}
