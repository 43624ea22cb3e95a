import { RouseError, isRouseError } from '../../errors.ts';
import type { VimClient } from './client.ts';
import { datastoreFile } from './configuration.ts';
import { isFault } from './faults.ts';
import { datacenterOf, machineRef } from './inventory.ts';
import { powerState } from './machines.ts';
import { ignoreFault } from './properties.ts';
import { runTask } from './tasks.ts';
import { leaf, reference } from './vim-xml.ts';
import type { Ref } from './vim-xml.ts';

/**
 * The screen as a PNG: at `/screen`, which leaves nothing behind; else by CreateScreenshot_Task,
 * which writes a file beside the machine that is fetched and deleted. Undefined: there is none.
 */
export async function screenPicture(client: VimClient, id: string): Promise<Buffer | undefined> {
  if ((await powerState(client, id)) === 'off') return undefined;
  const reply = await client.fetch(`/screen?id=${encodeURIComponent(id)}`);
  if (reply.status === 200 && isPng(reply.body)) return reply.body;
  try {
    return await byTask(client, machineRef(id));
  } catch (error) {
    // Not supported, not allowed, or switched off meanwhile: no picture is worth failing for.
    if (isFault(error) || isRouseError(error, 'hypervisor-error')) return undefined;
    throw error;
  }
}

function isPng(bytes: Buffer): boolean {
  return bytes.subarray(0, 8).equals(Buffer.from('\x89PNG\r\n\x1a\n', 'latin1'));
}

async function byTask(client: VimClient, machine: Ref): Promise<Buffer | undefined> {
  const what = `the picture of the screen of ${machine.id}`;
  const file = (await runTask(client, 'CreateScreenshot_Task', machine, [], { what }))?.text ?? '';
  if (file === '') throw new RouseError('hypervisor-error', `${what} has no file`);
  try {
    const bytes = await datastoreFile(client, machine, file);
    return bytes !== undefined && isPng(bytes) ? bytes : undefined;
  } finally {
    await deleteFile(client, machine, file).catch(ignoreFault);
  }
}

async function deleteFile(client: VimClient, machine: Ref, file: string): Promise<void> {
  const fileManager = await client.manager('fileManager');
  const datacenter = await datacenterOf(client, machine);
  const args = [leaf('name', file), reference('datacenter', datacenter)];
  await runTask(client, 'DeleteDatastoreFile_Task', fileManager, args, {
    what: `deleting ${file}`,
  });
}
