import { XMLParser, XMLValidator } from 'fast-xml-parser';
import { RouseError } from '../errors.ts';
import { formatLimits } from '../limits.ts';

/** What a backup from files has to know of a libvirt machine (libvirt, "Domain XML format"). */
export interface DomainDescription {
  readonly name: string;
  readonly uuid: string | undefined;
  /** Hard disks only, in order; CD and floppy drives are not backed up. */
  readonly disks: readonly DomainDisk[];
  readonly interfaces: readonly DomainInterface[];
  /** Path of the UEFI variables. */
  readonly nvram: string | undefined;
  readonly memoryBytes: number | undefined;
  readonly processors: number | undefined;
  readonly isEfi: boolean;
}

export interface DomainDisk {
  /** `vda`. */
  readonly target: string;
  /** A path of a file or block device; undefined for network disks and volumes. */
  readonly source: string | undefined;
  /** `file`, `block`, `network`, `volume`. */
  readonly type: string;
  /** `raw`, `qcow2`; undefined: libvirt takes it for raw. */
  readonly format: string | undefined;
  readonly isReadOnly: boolean;
}

export interface DomainInterface {
  readonly mac: string | undefined;
  /** The network's or bridge's name. */
  readonly network: string | undefined;
  readonly model: string | undefined;
}

export function describeDomain(xml: string, where: string): DomainDescription {
  const domain = parseDomain(xml, where);
  const name = textOf(child(domain, 'name'));
  if (name === '') throw notDomain(where, 'it has no name');
  const devices = child(domain, 'devices');
  const os = child(domain, 'os');
  const uuid = textOf(child(domain, 'uuid'));
  const nvram =
    textOf(child(os, 'nvram')) || attribute(child(child(os, 'nvram'), 'source'), 'file');
  return {
    name,
    uuid: uuid === '' ? undefined : uuid,
    disks: children(devices, 'disk').flatMap((disk) => describeDisk(disk)),
    interfaces: children(devices, 'interface').map(describeInterface),
    nvram: nvram === '' ? undefined : nvram,
    memoryBytes: memoryBytes(child(domain, 'memory')),
    processors: wholeNumber(textOf(child(domain, 'vcpu'))),
    isEfi:
      attribute(os, 'firmware') === 'efi' || attribute(child(os, 'loader'), 'type') === 'pflash',
  };
}

/** libvirt: "unit defaults to KiB"; KB is 1000, k is 1024. */
function memoryBytes(memory: XmlNode | undefined): number | undefined {
  const count = wholeNumber(textOf(memory));
  const unit = (attribute(memory, 'unit') || 'KiB').toLowerCase();
  const power = ['b', 'k', 'm', 'g', 't'].indexOf(unit.replace(/^bytes?$/u, 'b').slice(0, 1));
  const base = /^[kmgt]b$/u.test(unit) ? 1000 : 1024;
  return count === undefined || power < 0 ? undefined : count * base ** power;
}

function wholeNumber(text: string): number | undefined {
  return /^\d{1,15}$/u.test(text) ? Number(text) : undefined;
}

/** A node of the parser's ordered form: one key that is the tag, and attributes under `:@`. */
interface XmlNode {
  readonly tag: string;
  readonly attributes: ReadonlyMap<string, string>;
  readonly children: readonly XmlNode[];
  readonly text: string;
}

const parser = new XMLParser({
  preserveOrder: true,
  ignoreAttributes: false,
  attributeNamePrefix: '',
  parseTagValue: false,
  parseAttributeValue: false,
  processEntities: false,
  trimValues: true,
});

function parseDomain(xml: string, where: string): XmlNode {
  if (xml.length > formatLimits.configurationBytesMax) throw notDomain(where, 'it is too long');
  // A document type could define entities; no domain has one.
  if (/<!DOCTYPE/i.test(xml)) throw notDomain(where, 'it has a document type');
  let root: unknown;
  try {
    const valid = XMLValidator.validate(xml);
    if (valid !== true) throw notDomain(where, `line ${valid.err.line}: ${valid.err.msg}`);
    root = parser.parse(xml);
  } catch (error) {
    if (error instanceof RouseError) throw error;
    throw notDomain(where, error instanceof Error ? error.message : String(error));
  }
  const nodes = toNodes(root, 0, where);
  const domain =
    nodes.find((node) => node.tag === 'domain') ??
    child(
      nodes.find((node) => node.tag === 'domstatus'),
      'domain',
    );
  if (domain === undefined) throw notDomain(where, 'there is no <domain> in it');
  return domain;
}

/** libvirt's deepest elements lie some ten levels down. */
const depthMax = 64;

function toNodes(value: unknown, depth: number, where: string): XmlNode[] {
  if (!Array.isArray(value)) return [];
  if (depth > depthMax) throw notDomain(where, 'its elements are nested too deeply');
  const items: readonly unknown[] = value;
  return items.flatMap((item): XmlNode[] => {
    if (typeof item !== 'object' || item === null) return [];
    const entries = Object.entries(item);
    const body = entries.find(([key]) => key !== ':@');
    const attributes = entries.find(([key]) => key === ':@')?.[1];
    if (body === undefined) return [];
    const [tag, inner] = body;
    if (tag === '#text') return [{ tag, attributes: new Map(), children: [], text: decode(inner) }];
    const nested = toNodes(inner, depth + 1, where);
    const text = nested.map((node) => (node.tag === '#text' ? node.text : '')).join('');
    return [{ tag, attributes: attributeMap(attributes), children: nested, text }];
  });
}

function attributeMap(value: unknown): Map<string, string> {
  if (typeof value !== 'object' || value === null) return new Map();
  return new Map(Object.entries(value).map(([key, text]) => [key, decode(text)]));
}

const named: Readonly<Record<string, string>> = {
  amp: '&',
  lt: '<',
  gt: '>',
  quot: '"',
  apos: "'",
};

/** The five entities of XML itself and characters by number; nothing can define others. */
function decode(value: unknown): string {
  if (typeof value !== 'string') return '';
  return value.replace(/&(#x[0-9a-f]{1,6}|#\d{1,7}|[a-z]{2,4});/gi, (all, name: string) => {
    if (!name.startsWith('#')) return named[name] ?? all;
    const isHex = name[1]?.toLowerCase() === 'x';
    const code = Number.parseInt(name.slice(isHex ? 2 : 1), isHex ? 16 : 10);
    return code <= 0x10ffff ? String.fromCodePoint(code) : all;
  });
}

function child(node: XmlNode | undefined, tag: string): XmlNode | undefined {
  return node?.children.find((inner) => inner.tag === tag);
}

function children(node: XmlNode | undefined, tag: string): readonly XmlNode[] {
  return node?.children.filter((inner) => inner.tag === tag) ?? [];
}

function attribute(node: XmlNode | undefined, name: string): string {
  return node?.attributes.get(name) ?? '';
}

function textOf(node: XmlNode | undefined): string {
  return node?.text.trim() ?? '';
}

function describeDisk(disk: XmlNode): DomainDisk[] {
  const device = attribute(disk, 'device') || 'disk';
  const target = attribute(child(disk, 'target'), 'dev');
  if ((device !== 'disk' && device !== 'lun') || target === '') return [];
  const source = child(disk, 'source');
  const place = attribute(source, 'file') || attribute(source, 'dev');
  const format = attribute(child(disk, 'driver'), 'type');
  return [
    {
      target,
      source: place === '' ? undefined : place,
      type: attribute(disk, 'type') || 'file',
      format: format === '' ? undefined : format,
      isReadOnly: child(disk, 'readonly') !== undefined,
    },
  ];
}

function describeInterface(node: XmlNode): DomainInterface {
  const source = child(node, 'source');
  const network =
    attribute(source, 'network') || attribute(source, 'bridge') || attribute(source, 'dev');
  const mac = attribute(child(node, 'mac'), 'address');
  const model = attribute(child(node, 'model'), 'type');
  return {
    mac: mac === '' ? undefined : mac,
    network: network === '' ? undefined : network,
    model: model === '' ? undefined : model,
  };
}

function notDomain(where: string, what: string): RouseError {
  return new RouseError('corrupt-data', `${where}: not a domain of libvirt: ${what}`, {
    advice: 'Write it again with virsh dumpxml.',
  });
}
