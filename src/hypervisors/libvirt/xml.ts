import { XMLParser, XMLValidator } from 'fast-xml-parser';
import { RouseError } from '../../errors.ts';
import { libvirtLimits } from '../../limits.ts';

/**
 * XML as libvirt speaks it: elements in order, attributes, text. No document types, no entities
 * but the five of XML itself and character references; comments are dropped.
 */
export interface XmlElement {
  readonly name: string;
  readonly attributes: Map<string, string>;
  children: (XmlElement | string)[];
}

export function element(
  name: string,
  attributes: Readonly<Record<string, string>> = {},
  children: readonly (XmlElement | string)[] = [],
): XmlElement {
  return { name, attributes: new Map(Object.entries(attributes)), children: [...children] };
}

/** The root element. Throws `bad-request` naming `where` for anything that is not XML. */
export function parseXml(text: string, where: string): XmlElement {
  if (text.length > libvirtLimits.xmlBytesMax) throw notXml(where, 'it is too long');
  if (/<!DOCTYPE|<!ENTITY/iu.test(text)) throw notXml(where, 'it declares a document type');
  const valid = XMLValidator.validate(text);
  if (valid !== true) throw notXml(where, `${valid.err.msg} in line ${valid.err.line}`);
  let parsed: unknown;
  try {
    parsed = parser.parse(text);
  } catch (error) {
    throw notXml(where, error instanceof Error ? error.message : String(error));
  }
  const roots = elementsOf(parsed, where, 0).filter((child) => typeof child !== 'string');
  const root = roots[0];
  if (root === undefined || roots.length !== 1) throw notXml(where, 'it has no single root');
  return root;
}

export function writeXml(root: XmlElement): string {
  return `${linesOf(root, '').join('\n')}\n`;
}

export function child(parent: XmlElement | undefined, name: string): XmlElement | undefined {
  return childrenNamed(parent, name)[0];
}

/** `find(domain, 'os', 'nvram')`: the first such element. */
export function find(parent: XmlElement, ...path: readonly string[]): XmlElement | undefined {
  return path.reduce<XmlElement | undefined>((at, name) => child(at, name), parent);
}

export function childrenNamed(parent: XmlElement | undefined, name: string): XmlElement[] {
  return elements(parent).filter((candidate) => candidate.name === name);
}

export function elements(parent: XmlElement | undefined): XmlElement[] {
  return (parent?.children ?? []).filter((candidate) => typeof candidate !== 'string');
}

export function text(of: XmlElement | undefined): string {
  const parts = (of?.children ?? []).filter((part) => typeof part === 'string');
  return parts.join('').trim();
}

export function attribute(of: XmlElement | undefined, name: string): string | undefined {
  return of?.attributes.get(name);
}

export function remove(parent: XmlElement | undefined, ...names: readonly string[]): boolean {
  if (parent === undefined) return false;
  const before = parent.children.length;
  parent.children = parent.children.filter(
    (candidate) => typeof candidate === 'string' || !names.includes(candidate.name),
  );
  return parent.children.length < before;
}

/** Sets the text of a child, which is created (first, as libvirt does not mind) when missing. */
export function setText(parent: XmlElement, name: string, value: string): void {
  replaceChild(parent, element(name, {}, [value]));
}

/** Replaces the first child of that name in place, or appends. */
export function replaceChild(parent: XmlElement, by: XmlElement): void {
  const at = parent.children.findIndex(
    (candidate) => typeof candidate !== 'string' && candidate.name === by.name,
  );
  if (at < 0) parent.children.push(by);
  else parent.children[at] = by;
}

export function removeOne(parent: XmlElement, gone: XmlElement): void {
  parent.children = parent.children.filter((candidate) => candidate !== gone);
}

const parser = new XMLParser({
  preserveOrder: true,
  ignoreAttributes: false,
  attributeNamePrefix: '',
  parseTagValue: false,
  parseAttributeValue: false,
  trimValues: false,
  processEntities: false,
  ignoreDeclaration: true,
  ignorePiTags: true,
});

/** What the parser makes of an element's attributes and of text (preserveOrder). */
const attributesKey = ':@';
const textKey = '#text';

function elementsOf(value: unknown, where: string, depth: number): (XmlElement | string)[] {
  if (depth > libvirtLimits.xmlDepthMax) throw notXml(where, 'it is nested too deeply');
  if (!Array.isArray(value)) return [];
  const found = value.map((entry: unknown) => nodeOf(entry, where, depth));
  const hasElements = found.some((node) => typeof node !== 'string');
  return hasElements ? found.filter((node) => typeof node !== 'string') : found;
}

function nodeOf(entry: unknown, where: string, depth: number): XmlElement | string {
  if (typeof entry !== 'object' || entry === null) throw notXml(where, 'it cannot be read');
  const attributes = new Map<string, string>();
  let name = '';
  let children: (XmlElement | string)[] = [];
  for (const [key, value] of Object.entries(entry)) {
    if (key === textKey) return decode(String(value), where);
    if (key === attributesKey) {
      for (const [attributeName, raw] of Object.entries(value ?? {})) {
        attributes.set(attributeName, decode(String(raw), where));
      }
    } else {
      name = key;
      children = elementsOf(value, where, depth + 1);
    }
  }
  return { name, attributes, children };
}

const namedEntities: Readonly<Record<string, string>> = {
  amp: '&',
  lt: '<',
  gt: '>',
  quot: '"',
  apos: "'",
};

function decode(raw: string, where: string): string {
  return raw.replaceAll(/&(#x?[0-9a-f]+|\w+);/giu, (whole, name: string) => {
    const plain = namedEntities[name];
    if (plain !== undefined) return plain;
    const isHex = name.toLowerCase().startsWith('#x');
    const code = isHex ? parseInt(name.slice(2), 16) : parseInt(name.slice(1), 10);
    if (!name.startsWith('#') || !(code <= 0x10ffff)) throw notXml(where, `it has ${whole}`);
    return String.fromCodePoint(code);
  });
}

function linesOf(of: XmlElement, indent: string): string[] {
  const attributes = [...of.attributes].map(([name, value]) => ` ${name}='${escape(value)}'`);
  const open = `${indent}<${of.name}${attributes.join('')}`;
  if (of.children.length === 0) return [`${open}/>`];
  const inner = of.children.filter((node) => typeof node !== 'string');
  if (inner.length === 0) return [`${open}>${escape(of.children.join(''))}</${of.name}>`];
  const lines = inner.flatMap((node) => linesOf(node, `${indent}  `));
  return [`${open}>`, ...lines, `${indent}</${of.name}>`];
}

function escape(value: string): string {
  return value
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll("'", '&apos;')
    .replaceAll('\n', '&#10;');
}

function notXml(where: string, why: string): RouseError {
  return new RouseError('bad-request', `${where} is not usable XML: ${why}`);
}
