import { RouseError } from '../../errors.ts';
import type { VimClient } from './client.ts';
import { isFault } from './faults.ts';
import { vsphereLimits } from './limits.ts';
import { readOne } from './properties.ts';
import { cancelTask, hasEnded } from './tasks.ts';
import { all, leaf, textAt } from './vim-xml.ts';
import type { Ref, VimNode } from './vim-xml.ts';
import type { Latest, Subject } from './watch.ts';

/**
 * Questions that keep a machine from starting (VirtualMachine.runtime.question). We answer the one
 * that we know the answer to; anything else is for people, in the question's own words.
 */
export class QuestionDesk {
  readonly subject: Subject;
  readonly #client: VimClient;
  readonly #machine: Ref;
  readonly #name: string;
  readonly #answered = new Set<string>();
  /** Asked, and not ours to answer. */
  #open: VimNode | undefined;

  constructor(client: VimClient, machine: Ref, name: string) {
    this.#client = client;
    this.#machine = machine;
    this.#name = name;
    this.subject = { ref: machine, paths: ['runtime.question'] };
  }

  /** Answers what is asked now; rejects with `hypervisor-error` when that is not ours to answer. */
  async look(latest: Latest): Promise<void> {
    const question = latest.get(this.#machine, 'runtime.question');
    const id = textAt(question, 'id');
    if (question === undefined || id === undefined || this.#answered.has(id)) return;
    const choice = knownAnswer(question);
    if (choice === undefined) {
      this.#open = question;
      throw unknownQuestion(question, this.#name);
    }
    this.#answered.add(id);
    await this.#answer(id, choice);
  }

  async #answer(id: string, choice: string): Promise<void> {
    try {
      await this.#client.call('AnswerVM', this.#machine, [
        leaf('questionId', id),
        leaf('answerChoice', choice),
      ]);
    } catch (error) {
      // Somebody was quicker; if it is asked again, it comes under another id.
      if (!isFault(error, 'InvalidArgument', 'InvalidState', 'ConcurrentAccess')) throw error;
    }
  }

  /**
   * A power-on that waits for an answer which does not come keeps the machine from being
   * unregistered: it is cancelled, or else the question answered with its own way out. False: it
   * goes on asking.
   */
  async dismiss(task: Ref): Promise<boolean> {
    const what = `ending the power-on of ${this.#name}`;
    const wait = { what, timeoutMs: vsphereLimits.questionMsMax };
    const isCancelled = await cancelTask(this.#client, task);
    if (isCancelled && (await hasEnded(this.#client, task, wait))) return true;
    const question = this.#open ?? (await this.#asked());
    const id = textAt(question, 'id');
    const out = question && choicesOf(question).find(({ label }) => /cancel|abort/iu.test(label));
    if (id === undefined || out === undefined) {
      // Nothing is left to be done: just whether it was over anyhow.
      return hasEnded(this.#client, task, { what, timeoutMs: vsphereLimits.glanceMsMax });
    }
    await this.#answer(id, out.key);
    return hasEnded(this.#client, task, { what, timeoutMs: vsphereLimits.cancelMsMax });
  }

  async #asked(): Promise<VimNode | undefined> {
    const found = await readOne(this.#client, this.#machine, ['runtime.question']);
    return found.get('runtime.question');
  }

  get isLeftOpen(): boolean {
    return this.#open !== undefined;
  }
}

/**
 * `msg.uuid.altered`, "moved or copied?": the identity was chosen when the machine was configured
 * and stands in its .vmx, so it was moved: the UUID stays.
 */
export function knownAnswer(question: VimNode): string | undefined {
  const ids = all(question, 'message').map((message) => textAt(message, 'id') ?? '');
  const isMoved = ids.includes('msg.uuid.altered') || textAt(question, 'id') === 'msg.uuid.altered';
  if (!isMoved) return undefined;
  const choices = choicesOf(question);
  return choices.find(({ label }) => /moved/iu.test(label.replaceAll('_', '')))?.key;
}

/** ChoiceOption.choiceInfo: ElementDescription { label, summary, key }. */
function choicesOf(question: VimNode): readonly { key: string; label: string }[] {
  const choice = question.children.find(({ name }) => name === 'choice');
  return all(choice, 'choiceInfo').map((one) => ({
    key: textAt(one, 'key') ?? '',
    label: `${textAt(one, 'label') ?? ''} ${textAt(one, 'summary') ?? ''}`,
  }));
}

function unknownQuestion(question: VimNode, name: string): RouseError {
  const text = (textAt(question, 'text') ?? '').trim();
  const choices = choicesOf(question).map(({ label }) => label.trim().replaceAll('_', ''));
  return new RouseError('hypervisor-error', `${name} asks: ${text}`, {
    advice:
      `Rouse does not know the answer (${choices.join(', ') || 'see vCenter'}). Recover without ` +
      '--power-on, power it on in vCenter and answer there.',
    details: { question: text, choices },
  });
}
