import { posix } from 'node:path';
import type { ConfigureSpec } from '../port.ts';
import { attribute, child, childrenNamed, elements, remove, removeOne } from './xml.ts';
import type { XmlElement } from './xml.ts';

/**
 * Parts of a saved domain that name things of the host it ran on. What cannot follow is left out
 * and said; what would clash with the original is made the copy's own.
 */
export function rewriteHostParts(
  domain: XmlElement,
  spec: ConfigureSpec,
  say: (change: string) => void,
): void {
  if (remove(domain, 'seclabel')) say('the security labels of the old host are left out');
  const tune = child(domain, 'cputune');
  const isPinned = remove(tune, 'vcpupin', 'emulatorpin', 'iothreadpin', 'cachetune');
  if (remove(domain, 'numatune') || isPinned) {
    say('the machine is not pinned to processors of the old host');
  }
  child(domain, 'vcpu')?.attributes.delete('cpuset');
  const devices = child(domain, 'devices');
  if (devices === undefined) return;
  // Without it libvirt takes the host's own emulator, wherever that lies.
  remove(devices, 'emulator');
  for (const node of elements(devices)) {
    rewriteDevice(devices, node, spec, say);
  }
}

const unmovable: Readonly<Record<string, string>> = {
  hostdev: 'a device passed through from the old host is left out',
  filesystem: 'a directory shared from the old host is left out',
  shmem: 'memory shared with the old host is left out',
  lease: 'a lock lease of the old host is left out',
  nvdimm: 'a memory device of the old host is left out',
};

const characterDevices = ['serial', 'console', 'parallel', 'channel'];

function rewriteDevice(
  devices: XmlElement,
  node: XmlElement,
  spec: ConfigureSpec,
  say: (change: string) => void,
): void {
  const why = unmovable[node.name];
  if (why !== undefined) {
    removeOne(devices, node);
    say(why);
    return;
  }
  remove(node, 'alias');
  if (characterDevices.includes(node.name)) rewriteCharacterDevice(node, spec, say);
  if (node.name === 'graphics') rewriteGraphics(node, say);
  if (node.name === 'vsock') {
    for (const cid of childrenNamed(node, 'cid')) {
      cid.attributes.clear();
      cid.attributes.set('auto', 'yes');
    }
  }
}

function rewriteCharacterDevice(
  node: XmlElement,
  spec: ConfigureSpec,
  say: (change: string) => void,
): void {
  node.attributes.delete('tty');
  const source = child(node, 'source');
  const path = attribute(source, 'path');
  const type = attribute(node, 'type') ?? 'pty';
  for (const log of childrenNamed(node, 'log')) {
    const file = attribute(log, 'file');
    if (file !== undefined && !spec.identity.keep) log.attributes.set('file', own(file, spec.name));
  }
  if (type === 'unix' && node.name === 'channel') {
    // libvirt names the socket of an agent's channel itself.
    remove(node, 'source');
  } else if ((type === 'file' || type === 'unix') && source !== undefined && path !== undefined) {
    // The original may run beside the copy: each has its own log and its own socket.
    if (spec.identity.keep) return;
    source.attributes.set('path', own(path, spec.name));
    if (node.name !== 'console') say(`${node.name} is at ${own(path, spec.name)}`);
  } else if (['unix', 'tcp', 'udp', 'dev', 'pipe', 'pty'].includes(type)) {
    remove(node, 'source', 'protocol');
    node.attributes.set('type', 'pty');
    if (type !== 'pty') say(`${node.name} is a terminal instead of a ${type} of the old host`);
  }
}

/** `/var/log/web01.log` for the copy `web01-copy`: `/var/log/web01-web01-copy.log`. */
function own(path: string, name: string): string {
  const { dir, name: stem, ext } = posix.parse(path);
  const suffix = name.replaceAll(/[^\w.-]/gu, '_');
  return posix.join(dir, `${stem}-${suffix}${ext}`);
}

function rewriteGraphics(node: XmlElement, say: (change: string) => void): void {
  const type = attribute(node, 'type');
  if (type !== 'vnc' && type !== 'spice') return;
  node.attributes.delete('websocket');
  node.attributes.delete('socket');
  node.attributes.delete('tlsPort');
  if (attribute(node, 'autoport') === 'yes') {
    node.attributes.delete('port');
    return;
  }
  node.attributes.delete('port');
  node.attributes.set('autoport', 'yes');
  say('the screen has a port of its own');
}
