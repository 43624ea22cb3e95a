import { isRouseError } from '../../errors.ts';
import { parseVmx } from '../../formats/vmx.ts';
import type { VimClient } from './client.ts';
import { vmwareUuid } from './configure.ts';
import { controllersOf, disksOf, networksOf } from './devices.ts';
import { datacenterOf } from './inventory.ts';
import { entityName, parseDatastorePath } from './names.ts';
import { readOne } from './properties.ts';
import type { Found } from './properties.ts';
import { all, textAt } from './vim-xml.ts';
import type { Ref } from './vim-xml.ts';

/**
 * The machine's .vmx, read from its datastore; where that is not possible (no such privilege, the
 * datastore is away), one that says what the manager tells of its hardware.
 */
export async function savedConfiguration(client: VimClient, found: Found): Promise<string> {
  try {
    const bytes = await datastoreFile(
      client,
      found.ref,
      found.text('config.files.vmPathName') ?? '',
    );
    const text = bytes?.toString('utf8') ?? '';
    // Throws for what is no .vmx.
    if (text !== '') return parseVmx(text, 'the .vmx').toString();
  } catch (error) {
    if (!isRouseError(error)) throw error;
  }
  return writtenFrom(found);
}

/** A file of a datastore by its path; undefined when the manager does not give it. */
export async function datastoreFile(
  client: VimClient,
  machine: Ref,
  file: string,
): Promise<Buffer | undefined> {
  const place = parseDatastorePath(file);
  if (place === undefined) return undefined;
  const reply = await client.fetch(await folderUrl(client, machine, place));
  return reply.status === 200 ? reply.body : undefined;
}

/** `/folder/web01/web01.vmx?dcPath=…&dsName=…`; on ESXi itself the data centre is `ha-datacenter`. */
export async function folderUrl(
  client: VimClient,
  machine: Ref,
  place: { readonly datastore: string; readonly path: string },
): Promise<string> {
  const path = place.path.split('/').map(encodeURIComponent).join('/');
  const query = new URLSearchParams({
    dcPath: await datacenterPath(client, machine),
    dsName: place.datastore,
  });
  return `/folder/${path}?${query}`;
}

/** Names from the root folder down to the data centre: `europe/dc1`. */
async function datacenterPath(client: VimClient, from: Ref): Promise<string> {
  const names: string[] = [];
  const { rootFolder } = await client.service();
  let here: Ref | undefined = await datacenterOf(client, from);
  while (here !== undefined && here.id !== rootFolder.id) {
    const found: Found = await readOne(client, here, ['name', 'parent']);
    names.unshift(entityName(found.text('name')));
    const parent = found.get('parent');
    here = parent?.refType === undefined ? undefined : { type: parent.refType, id: parent.text };
  }
  return names.join('/');
}

function writtenFrom(found: Found): string {
  const hardware = found.get('config.hardware');
  const devices = hardware && { ...hardware, children: all(hardware, 'device') };
  const uuid = found.text('config.uuid') ?? '';
  const lines: (readonly [string, string])[] = [
    ['.encoding', 'UTF-8'],
    ['config.version', '8'],
    ['virtualHW.version', '13'],
    ['displayName', entityName(found.text('name'))],
    ['guestOS', (found.text('config.guestId') ?? 'otherGuest64').replace(/Guest$/u, '')],
    ['firmware', found.text('config.firmware') ?? 'bios'],
    ['memSize', textAt(hardware, 'memoryMB') ?? '1024'],
    ['numvcpus', textAt(hardware, 'numCPU') ?? '1'],
    ...(uuid === '' ? [] : [['uuid.bios', vmwareUuid(uuid)] as const]),
    ['pciBridge0.present', 'TRUE'],
  ];
  for (const { kind, bus, type } of controllersOf(devices)) {
    if (kind === 'ide') continue;
    lines.push([`${kind}${bus}.present`, 'TRUE']);
    const model = models[type];
    if (model !== undefined) lines.push([`${kind}${bus}.virtualDev`, model]);
  }
  for (const { name, file } of disksOf(devices)) {
    lines.push([`${name}.present`, 'TRUE'], [`${name}.fileName`, file.replace(/^.*\//u, '')]);
  }
  for (const [index, { mac, network }] of networksOf(devices, false).entries()) {
    const card = `ethernet${index}`;
    lines.push([`${card}.present`, 'TRUE'], [`${card}.networkName`, network]);
    lines.push([`${card}.addressType`, 'static'], [`${card}.address`, mac]);
    lines.push([`${card}.virtualDev`, 'vmxnet3']);
  }
  const escaped = (value: string) => value.replaceAll('|', '|7C').replaceAll('"', '|22');
  return lines.map(([key, value]) => `${key} = "${escaped(value)}"\n`).join('');
}

const models: Readonly<Record<string, string>> = {
  VirtualLsiLogicController: 'lsilogic',
  VirtualLsiLogicSASController: 'lsisas1068',
  VirtualBusLogicController: 'buslogic',
  ParaVirtualSCSIController: 'pvscsi',
};
