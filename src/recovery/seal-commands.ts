import type { Command } from 'commander';
import type { SavesetView } from '../catalog/schema.ts';
import { errorTable, type ErrorCode, RouseError } from '../errors.ts';
import { examples, follow, Interrupted, type Terminal } from '../lib/terminal.ts';
import { formatBytes } from '../lib/text.ts';
import type { Sealing } from './schema.ts';
import { recoveryPath } from './watch.ts';

/** `rouse seal`: shows how far it is; Ctrl-C asks whether to cancel it. */
export function addSeal(parent: Command, terminal: Terminal, name: string): void {
  const command = parent
    .command(name)
    .description('make a new saveset of a recovery, with all that was written to it')
    .argument('<recovery>', 'id or name of the recovery, or its machine')
    .action(async (reference: string) => {
      const client = await terminal.client();
      const path = `${recoveryPath(reference)}/seals`;
      const begun = (await client.post(path)) as Sealing;
      const ended = await followSealing(begun, `${path}/${begun.id}`, terminal);
      if (ended.savesetId === null) throw failureOf(ended);
      const saveset = (await client.get(`/v1/savesets/${ended.savesetId}`)) as SavesetView;
      terminal.answer(saveset, () => {
        const size = `${formatBytes(saveset.newBytes)} new`;
        terminal.print(`Sealed into saveset ${saveset.id} (${size}).`);
        terminal.print(`→ rouse recover --saveset ${saveset.id}`);
      });
    });
  examples(command, ['rouse seal web01']);
}

async function followSealing(begun: Sealing, path: string, terminal: Terminal): Promise<Sealing> {
  const controller = new AbortController();
  const live = terminal.interactive && !terminal.json ? terminal.live() : undefined;
  let last = begun;
  let asking: Promise<void> | undefined;
  const stopListening = terminal.onInterrupt(() => {
    live?.end();
    asking ??= cancelOrNot(path, terminal, controller).finally(() => {
      asking = undefined;
    });
  });
  try {
    for await (const view of follow<Sealing>(terminal, `${path}/events`, controller.signal)) {
      last = view;
      if (asking === undefined && view.state === 'running') live?.show([progressLine(view)]);
    }
    await asking;
  } finally {
    live?.end();
    stopListening();
  }
  if (controller.signal.aborted) throw new Interrupted();
  return last;
}

/** Without a terminal to ask at, Ctrl-C means cancel: nobody would watch it any more. */
async function cancelOrNot(
  path: string,
  terminal: Terminal,
  controller: AbortController,
): Promise<void> {
  if (terminal.interactive && !terminal.json && !(await terminal.ask('Cancel sealing? [y/N] '))) {
    terminal.note('Sealing goes on in the background: rouse savesets shows what it made.');
    controller.abort();
    return;
  }
  terminal.note('Cancelling it; what was stored already is reused next time.');
  const client = await terminal.client();
  await client.post(`${path}/cancel`).catch((error: unknown) => {
    // It may have ended in this very moment: then the stream says how.
    if (!(error instanceof RouseError && error.code === 'wrong-state')) controller.abort();
  });
}

function progressLine({ doneBytes, totalBytes }: Sealing): string {
  if (totalBytes === 0) return 'Sealing: looking at what was written';
  const percent = Math.floor((100 * doneBytes) / totalBytes);
  return `Sealing: ${formatBytes(doneBytes)} of ${formatBytes(totalBytes)} (${percent}%)`;
}

function failureOf({ id, state, error }: Sealing): RouseError {
  if (error === null) return new RouseError('cancelled', `sealing ${id} was ${state}`);
  const code: ErrorCode = error.code in errorTable ? (error.code as ErrorCode) : 'internal';
  return new RouseError(code, `sealing failed: ${error.message}`, { advice: error.advice });
}
