// Asks the service, waits where it asks to wait, and turns whatever goes wrong into an answer that can be shown.
(demo => {
  const {texts, escaped} = demo;
  const patience = 60000; // Milliseconds for one attempt
  const attempts = 5; // Where the service is busy
  const busy = [429, 503];

  const pause = (milliseconds, signal) => new Promise((done, fail) => {
    const timer = setTimeout(done, milliseconds);
    signal.addEventListener('abort', () => {
      clearTimeout(timer);
      fail(signal.reason);
    }, {once: true});
  });

  // The same as the service says it, for what never reached it.
  demo.refusal = (status, detail = '') => {
    const text = texts.refusals.status[status] || texts.refusals.other;
    const again = texts.refusals.passing.includes(status)
      ? `<button type="button" class="send" data-do="again">${escaped(texts.photo.again)}</button>` : '';
    const words = `<div class="answer refused"><h2>${escaped(text.title)}</h2>`
      + `<p class="lead">${escaped(text.advice)}</p>${detail ? `<p class="fine">${escaped(detail)}</p>` : ''}${again}</div>`;
    return {status, title: text.title, words, overlay: '', cards: []};
  };

  const ask = async (path, body, signal) => {
    const limited = AbortSignal.any ? AbortSignal.any([signal, AbortSignal.timeout(patience)]) : signal;
    const response = await fetch(demo.home + path, {method: 'POST', body, signal: limited});
    if (!response.ok) return demo.refusal(response.status);
    return response.json();
  };

  // An address with what is asked for besides.
  const addressOf = (path, {picture = false} = {}) => {
    const wishes = [picture && 'picture=1', demo.isOneDeck() && 'one_deck=1'].filter(Boolean).join('&');
    return wishes ? `${path}?${wishes}` : path;
  };

  // The answer to a photo; a cancelled one throws.
  demo.ask = async (photo, signal) => {
    const path = addressOf('demo/answer', {picture: !photo.url});
    let answer = null;
    for (let attempt = 1; attempt <= attempts; attempt += 1) {
      try {
        answer = await ask(path, photo.content, signal);
      } catch {
        signal.throwIfAborted();
        return demo.refusal(0);
      }
      if (!busy.includes(answer.status) || attempt === attempts) break;
      await pause(500 * attempt, signal);
    }
    if (answer.picture) photo.url = answer.picture;
    return answer;
  };

  // What the camera sees; null where that was not answered.
  demo.look = async (blob, signal) => {
    try {
      const answer = await ask(addressOf('demo/look'), blob, signal);
      return answer.status === 200 ? answer : null;
    } catch {
      return null;
    }
  };

  demo.correct = async correction => {
    try {
      const response = await fetch(`${demo.home}demo/correction`, {method: 'POST', body: JSON.stringify(correction)});
      if (response.ok) return await response.json();
    } catch {
      // Said below
    }
    const sentence = navigator.onLine ? texts.correction.not_stored : texts.refusals.status[0].title;
    return {is_kept: false, said: `<p class="thanks problem">${escaped(sentence)}</p>`};
  };
})(window.cardDemo);
