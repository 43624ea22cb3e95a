import { XMLParser, XMLValidator } from 'fast-xml-parser';
import { RouseError } from '../../errors.ts';
import { vsphereLimits } from './limits.ts';

/**
 * XML as vim25 speaks it. Written by hand, because the schema wants its elements in order; read
 * into a tree of local names, so that whatever prefixes a server likes do not matter. No document
 * types, no entities but the five of XML and characters by number.
 */

/** A managed object: its type and its id, which is opaque and may hold anything (`/ : @`). */
export interface Ref {
  readonly type: string;
  readonly id: string;
}

/** A piece of finished XML; only this file makes them, so text is always escaped. */
export type Xml = string & { readonly __xml: true };

/** `<name>text</name>`; nothing at all when there is no value. */
export function leaf(name: string, value: string | number | boolean | undefined): Xml {
  return xml(value === undefined ? '' : `<${name}>${escapeXml(String(value))}</${name}>`);
}

/** An element with elements in it; `type` becomes its xsi:type. */
export function node(name: string, children: readonly Xml[], type?: string): Xml {
  const said = type === undefined ? '' : ` xsi:type="${escapeXml(type)}"`;
  return xml(`<${name}${said}>${children.join('')}</${name}>`);
}

/** A value whose type the schema leaves open (xsd:anyType), as text. */
export function textValue(name: string, value: string): Xml {
  return xml(`<${name} xsi:type="xsd:string">${escapeXml(value)}</${name}>`);
}

export function reference(name: string, ref: Ref | undefined): Xml {
  if (ref === undefined) return xml('');
  return xml(`<${name} type="${escapeXml(ref.type)}">${escapeXml(ref.id)}</${name}>`);
}

/** A whole request. vim25's types and elements are in the default namespace of the method. */
export function envelope(method: string, self: Ref, args: readonly Xml[]): string {
  return (
    '<?xml version="1.0" encoding="UTF-8"?>\n' +
    '<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"' +
    ' xmlns:xsd="http://www.w3.org/2001/XMLSchema"' +
    ' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">' +
    `<soapenv:Body><${method} xmlns="urn:vim25">` +
    `${reference('_this', self)}${args.join('')}` +
    `</${method}></soapenv:Body></soapenv:Envelope>`
  );
}

function xml(text: string): Xml {
  return text as Xml;
}

const escapes: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&apos;',
  '\r': '&#13;',
  '\n': '&#10;',
  '\t': '&#9;',
};

function escapeXml(text: string): string {
  // XML 1.0, 2.2: these cannot be written at all, not even by number.
  // oxlint-disable-next-line no-control-regex -- control characters are what is refused
  if (/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/.test(text) || !text.isWellFormed()) {
    throw new RouseError('bad-request', 'a value holds characters that vSphere cannot be told', {
      advice: 'Use a name without control characters.',
    });
  }
  return text.replace(/[&<>"'\r\n\t]/g, (character) => escapes[character] ?? character);
}

/** An element of an answer. */
export interface VimNode {
  /** Without its prefix. */
  readonly name: string;
  /** xsi:type without its prefix: `VirtualDisk`, `ArrayOfHostVirtualNic`. */
  readonly type: string | undefined;
  /** The plain attribute `type` of references. */
  readonly refType: string | undefined;
  readonly text: string;
  readonly children: readonly VimNode[];
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
  cdataPropName: '#cdata',
});

/** The root of a document. Throws `hypervisor-error` naming `where` for what is not XML. */
export function parseVim(text: string, where: string): VimNode {
  if (/<!DOCTYPE|<!ENTITY/iu.test(text)) throw notXml(where, 'it declares a document type');
  const valid = XMLValidator.validate(text);
  if (valid !== true) throw notXml(where, `${valid.err.msg} in line ${valid.err.line}`);
  let parsed: unknown;
  try {
    parsed = parser.parse(text);
  } catch (error) {
    throw notXml(where, error instanceof Error ? error.message : String(error));
  }
  const { children } = contentOf(parsed, where, 0);
  const [root] = children;
  if (root === undefined || children.length !== 1) throw notXml(where, 'it has no single root');
  return root;
}

/** What the parser makes of an element's attributes, of text and of CDATA (preserveOrder). */
const attributesKey = ':@';
const textKey = '#text';
const cdataKey = '#cdata';

function contentOf(value: unknown, where: string, depth: number) {
  if (depth > vsphereLimits.xmlDepthMax) throw notXml(where, 'it is nested too deeply');
  const children: VimNode[] = [];
  let text = '';
  for (const entry of Array.isArray(value) ? (value as readonly unknown[]) : []) {
    if (typeof entry !== 'object' || entry === null) continue;
    const attributes = new Map<string, string>();
    for (const [key, inner] of Object.entries(entry)) {
      if (key !== attributesKey) continue;
      for (const [name, raw] of Object.entries(inner ?? {})) {
        attributes.set(name, decode(String(raw), where));
      }
    }
    for (const [key, inner] of Object.entries(entry)) {
      if (key === attributesKey) continue;
      if (key === textKey) text += decode(String(inner), where);
      else if (key === cdataKey) text += contentOfCdata(inner);
      else children.push(elementOf(key, inner, attributes, where, depth));
    }
  }
  return { children, text: children.length > 0 ? '' : text };
}

function contentOfCdata(value: unknown): string {
  const parts: readonly unknown[] = Array.isArray(value) ? value : [];
  return parts
    .flatMap((part) => (typeof part === 'object' && part !== null ? Object.entries(part) : []))
    .map(([key, text]) => (key === textKey ? String(text) : ''))
    .join('');
}

function elementOf(
  name: string,
  value: unknown,
  attributes: ReadonlyMap<string, string>,
  where: string,
  depth: number,
): VimNode {
  const typed = [...attributes].find(([key]) => /^[^:]+:type$/u.test(key))?.[1];
  return {
    name: localName(name),
    type: typed === undefined ? undefined : localName(typed),
    refType: attributes.get('type'),
    ...contentOf(value, where, depth + 1),
  };
}

function localName(name: string): string {
  return name.slice(name.lastIndexOf(':') + 1);
}

const named: Readonly<Record<string, string>> = {
  amp: '&',
  lt: '<',
  gt: '>',
  quot: '"',
  apos: "'",
};

function decode(raw: string, where: string): string {
  return raw.replaceAll(/&(#x?[0-9a-f]+|\w+);/giu, (whole, name: string) => {
    const plain = named[name];
    if (plain !== undefined) return plain;
    const isHex = name.toLowerCase().startsWith('#x');
    const code = isHex ? parseInt(name.slice(2), 16) : parseInt(name.slice(1), 10);
    if (!name.startsWith('#') || !(code <= 0x10ffff)) throw notXml(where, `it has ${whole}`);
    return String.fromCodePoint(code);
  });
}

function notXml(where: string, why: string): RouseError {
  return new RouseError('hypervisor-error', `the answer to ${where} is not usable XML: ${why}`, {
    advice: 'Check that the address is that of a vCenter or an ESXi host, ending in /sdk.',
  });
}

/** `at(info, 'error.fault')`: the first such element. */
export function at(from: VimNode | undefined, path: string): VimNode | undefined {
  let here = from;
  for (const name of path.split('.')) {
    here = here?.children.find((child) => child.name === name);
  }
  return here;
}

/** All children of that name. */
export function all(from: VimNode | undefined, name: string): readonly VimNode[] {
  return from?.children.filter((child) => child.name === name) ?? [];
}

/** The elements of an `ArrayOf…`, whatever they are called. */
export function items(from: VimNode | undefined): readonly VimNode[] {
  return from?.children ?? [];
}

/** The text at a path; undefined when it is not there, so that '' stays what was said. */
export function textAt(from: VimNode | undefined, path: string): string | undefined {
  return at(from, path)?.text;
}

/** A whole number; xsd:long beyond 2^53 loses its last digits. */
export function numberAt(from: VimNode | undefined, path: string): number | undefined {
  const text = textAt(from, path)?.trim() ?? '';
  return /^-?\d+$/.test(text) ? Number(text) : undefined;
}

export function flagAt(from: VimNode | undefined, path: string): boolean {
  const text = textAt(from, path)?.trim();
  return text === 'true' || text === '1';
}

/** The managed object that an element refers to. */
export function refOf(from: VimNode | undefined): Ref | undefined {
  if (from === undefined || from.refType === undefined || from.text === '') return undefined;
  return { type: from.refType, id: from.text };
}

export function refAt(from: VimNode | undefined, path: string): Ref | undefined {
  return refOf(at(from, path));
}

/** The references of an `ArrayOfManagedObjectReference`. */
export function refsOf(from: VimNode | undefined): readonly Ref[] {
  return items(from).flatMap((child) => refOf(child) ?? []);
}

export function sameRef(one: Ref | undefined, other: Ref | undefined): boolean {
  return one !== undefined && one.type === other?.type && one.id === other.id;
}
