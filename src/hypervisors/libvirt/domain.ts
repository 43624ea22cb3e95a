import type { DatastoreSpec, MachineDetail, PowerState } from '../port.ts';
import { attribute, child, childrenNamed, element, find, text } from './xml.ts';
import type { XmlElement } from './xml.ts';

/** What we read out of a domain's XML. */
export interface DomainDisk {
  /** `vda`: the target's name, unique in a machine. */
  readonly name: string;
  readonly device: string;
  readonly bus: string;
  readonly format: string;
  readonly isReadOnly: boolean;
  readonly serial: string;
  /** Text for people; empty for an empty drive. */
  readonly source: string;
  /** The path on the host when it is a plain file or block device. */
  readonly path: string | undefined;
  readonly node: XmlElement;
}

export function domainDisks(domain: XmlElement): DomainDisk[] {
  return childrenNamed(child(domain, 'devices'), 'disk').map((node) => {
    const source = child(node, 'source');
    return {
      name: attribute(child(node, 'target'), 'dev') ?? '',
      device: attribute(node, 'device') ?? 'disk',
      bus: attribute(child(node, 'target'), 'bus') ?? '',
      format: attribute(child(node, 'driver'), 'type') ?? 'raw',
      isReadOnly: child(node, 'readonly') !== undefined,
      serial: text(child(node, 'serial')),
      source: sourceText(source),
      path: attribute(source, 'file') ?? attribute(source, 'dev'),
      node,
    };
  });
}

/** `nfs://10.0.0.5/default/Recover-a-1/web01/vda-flat.vmdk`, or a path. */
function sourceText(source: XmlElement | undefined): string {
  if (source === undefined) return '';
  const path = attribute(source, 'file') ?? attribute(source, 'dev');
  if (path !== undefined) return path;
  const protocol = attribute(source, 'protocol');
  if (protocol !== undefined) {
    const host = attribute(child(source, 'host'), 'name') ?? '';
    const name = attribute(source, 'name') ?? '';
    return `${protocol}://${hostInUrl(host)}${name.startsWith('/') ? '' : '/'}${name}`;
  }
  const pool = attribute(source, 'pool');
  return pool === undefined ? '' : `pool:${pool}/${attribute(source, 'volume') ?? ''}`;
}

export function hostInUrl(host: string): string {
  return host.includes(':') ? `[${host}]` : host;
}

/** Whether a disk's source text lies on that export, by QEMU's client or below a mounted path. */
export function liesOn(source: string, place: DatastorePlace): boolean {
  const prefix = `nfs://${hostInUrl(place.server)}${place.path}/`;
  if (source.startsWith(prefix)) return true;
  return place.mountPath !== undefined && source.startsWith(`${place.mountPath}/`);
}

/** Where an export is, and the path when the host's kernel has mounted it. */
export interface DatastorePlace {
  readonly name: string;
  readonly server: string;
  readonly path: string;
  readonly mountPath?: string;
}

export function domainNetworks(domain: XmlElement): MachineDetail['networks'] {
  return childrenNamed(child(domain, 'devices'), 'interface').map((node) => {
    const source = child(node, 'source');
    return {
      mac: attribute(child(node, 'mac'), 'address') ?? '',
      network:
        attribute(source, 'network') ??
        attribute(source, 'bridge') ??
        attribute(source, 'dev') ??
        attribute(node, 'type') ??
        '',
      connected: attribute(child(node, 'link'), 'state') !== 'down',
    };
  });
}

/** Our element in a domain's metadata: whose it is, and what its disks measure. */
export const markNamespace = 'https://rouse.dev/xmlns/1';
const markElement = 'rouse:machine';

export interface MachineMark {
  readonly mark: string;
  readonly datastore: string;
  readonly location: string;
  readonly sizes: ReadonlyMap<string, number>;
  /** The saved firmware variables below the export's path, to be put on the host. */
  readonly nvram: string | undefined;
}

export function readMark(domain: XmlElement): MachineMark | undefined {
  const node = find(domain, 'metadata', markElement);
  if (node === undefined) return undefined;
  const sizes = childrenNamed(node, 'rouse:disk').map(
    (disk) => [attribute(disk, 'name') ?? '', Number(attribute(disk, 'size') ?? 0)] as const,
  );
  return {
    mark: attribute(node, 'mark') ?? '',
    datastore: attribute(node, 'datastore') ?? '',
    location: attribute(node, 'location') ?? '',
    sizes: new Map(sizes),
    nvram: attribute(node, 'nvram'),
  };
}

export function writeMark(
  domain: XmlElement,
  mark: string,
  datastore: DatastoreSpec,
  disks: readonly { readonly name: string; readonly sizeBytes: number }[],
  nvram: string | undefined,
): void {
  let metadata = child(domain, 'metadata');
  if (metadata === undefined) {
    metadata = element('metadata');
    domain.children.push(metadata);
  }
  metadata.children = metadata.children.filter(
    (node) => typeof node !== 'string' && node.name !== markElement,
  );
  metadata.children.push(
    element(
      markElement,
      {
        'xmlns:rouse': markNamespace,
        mark,
        datastore: datastore.name,
        location: `${datastore.server}:${datastore.path}`,
        ...(nvram === undefined ? {} : { nvram }),
      },
      disks.map((disk) => element('rouse:disk', { name: disk.name, size: String(disk.sizeBytes) })),
    ),
  );
}

/** libvirt's virDomainState: idle and blocked guests are on. */
export function powerOf(state: string): PowerState {
  const words = state.trim();
  if (words === '5' || words === '6' || words === '0') return 'off';
  if (words === '3' || words === '7') return 'paused';
  if (/^(shut off|crashed|no state)/u.test(words)) return 'off';
  if (/^(paused|pmsuspended)/u.test(words)) return 'paused';
  return 'on';
}

/** `domstats`: one map of keys for each `Domain: 'name'`. */
export function parseStats(output: string): Map<string, Map<string, string>> {
  const all = new Map<string, Map<string, string>>();
  let current: Map<string, string> | undefined;
  for (const line of output.split('\n')) {
    const name = /^Domain: '(.*)'$/u.exec(line)?.[1];
    if (name !== undefined) {
      current = new Map();
      all.set(name, current);
    } else {
      const at = line.indexOf('=');
      if (at > 0) current?.set(line.slice(0, at).trim(), line.slice(at + 1));
    }
  }
  return all;
}

/** The block part of one domain's stats, by the disk's name. */
export function blockStats(stats: ReadonlyMap<string, string>): Map<string, BlockStats> {
  const found = new Map<string, BlockStats>();
  const count = Number(stats.get('block.count') ?? 0);
  for (let index = 0; index < count; index += 1) {
    const number = (key: string) => Number(stats.get(`block.${index}.${key}`) ?? 0);
    found.set(stats.get(`block.${index}.name`) ?? '', {
      capacityBytes: number('capacity'),
      requests: number('rd.reqs') + number('wr.reqs') + number('fl.reqs'),
      nanoseconds: number('rd.times') + number('wr.times') + number('fl.times'),
    });
  }
  return found;
}

export interface BlockStats {
  readonly capacityBytes: number;
  readonly requests: number;
  readonly nanoseconds: number;
}
